import pytest
import torch

from mmblocks.tokenizers.towers.attention_projection import AttentionProjection


@pytest.mark.parametrize(("in_dim", "out_dim", "num_heads"), [(32, 8, 4), (32, 8, 2), (8, 32, 4), (8, 8, 2)])
def test_width_changes_and_every_parameter_learns(in_dim, out_dim, num_heads) -> None:
    project = AttentionProjection(in_dim=in_dim, out_dim=out_dim, num_heads=num_heads)
    out = project(torch.randn(2, 3, 5, in_dim))
    assert out.shape == (2, 3, 5, out_dim)
    out.square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in project.parameters())


def test_causal_tokens_do_not_see_what_follows() -> None:
    torch.manual_seed(0)
    project = AttentionProjection(in_dim=8, out_dim=16, num_heads=2, causal=True)
    x = torch.randn(1, 6, 8)
    changed = x.clone()
    changed[:, 4:] += 1
    same = (project(x) == project(changed)).all(dim=-1)[0]
    assert same.tolist() == [True] * 4 + [False] * 2


def test_widths_that_do_not_divide_are_refused() -> None:
    for options in ({"in_dim": 12, "out_dim": 8, "num_heads": 2}, {"in_dim": 16, "out_dim": 8, "num_heads": 3}):
        with pytest.raises(ValueError, match="accepted: a larger width that is a multiple"):
            AttentionProjection(**options)
