import pytest
import torch

from mmblocks import Block
from mmblocks.tokenizers.open_magvit2.video import OpenMAGVIT2Video


def tokenizer() -> OpenMAGVIT2Video:
    torch.manual_seed(0)
    return OpenMAGVIT2Video(bits=(6,), channels=32, multipliers=(1, 2, 2), num_blocks=1, temporal_levels=(1,))


def clip(frames: int, height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("frames", "grid"), [(1, 1), (3, 2), (5, 3)])
def test_codes_decode_to_what_the_latents_decode_to(frames, grid) -> None:
    tokens = tokenizer().eval()
    pixels = clip(frames, 8, 12, batch=2)
    latents = tokens.encode(pixels)
    assert latents.ids.shape == (2, grid, 2, 3) and latents.loss is None
    decoded = tokens.decode(latents.ids)
    assert decoded.shape == pixels.shape and decoded.min() >= 0 and decoded.max() <= 1
    assert torch.equal(decoded, tokens.decode(latents))


def test_later_frames_change_no_earlier_convolution() -> None:
    encoder = tokenizer().encoder
    for parent in list(encoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.GroupNorm):  # the only part that sees the whole clip
                setattr(parent, name, torch.nn.Identity())
    values = torch.randn(1, 3, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    changed = values.clone()
    changed[:, :, 3:] += 1
    before, after = encoder(values), encoder(changed)
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2], after[:, 2])


def test_gradients_reach_every_parameter() -> None:
    tokens = tokenizer().train()
    latents = tokens.encode(clip(3, 8, 8))
    (tokens.decode(latents).square().mean() + sum(latents.loss.values())).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in tokens.parameters())


def test_bfloat16_decodes_ids_too() -> None:
    tokens = tokenizer().bfloat16().eval()
    assert tokens.decode(tokens.encode(clip(1, 8, 8).bfloat16()).ids).dtype == torch.bfloat16


def test_saved_and_loaded(tmp_path) -> None:
    tokens = tokenizer().eval()
    tokens.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    assert again.config == tokens.config and torch.equal(again.encode(clip(3, 8, 8)).ids, tokens.encode(clip(3, 8, 8)).ids)


def test_sizes_that_do_not_fit_are_refused() -> None:
    tokens = tokenizer()
    with pytest.raises(ValueError, match=r"clip has 4 frames; accepted: 1 \+ a multiple of 2, such as 5"):
        tokens.encode(clip(4, 8, 8))
    with pytest.raises(ValueError, match="clip has 0 frames"):
        tokens.encode(clip(0, 8, 8))
    with pytest.raises(ValueError, match="accepted: multiples of 4x4, such as 8x12"):
        tokens.encode(clip(3, 9, 12))
