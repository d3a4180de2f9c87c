import pytest
import torch

from mmblocks import Block
from mmblocks.tokenizers.bottlenecks.multi_scale import MultiScaleQuantizer, blend_of_scale


def bottleneck(**options) -> MultiScaleQuantizer:
    torch.manual_seed(0)
    return MultiScaleQuantizer(**{"num_codes": 50, "dim": 8, "scales": (1, 2, 4), **options})


NON_SQUARE = ((1, 1), (2, 3), (5, 7))


@pytest.mark.parametrize(("scales", "size"), [(None, (4, 4)), (NON_SQUARE, (5, 7)), ([[3, 2]], (3, 2))])
def test_ids_lead_back_to_the_map(scales, size) -> None:
    quantizer = bottleneck().eval()
    features = torch.randn(2, *size, 8)
    latents = quantizer(features, scales=scales)
    sizes = quantizer.sizes(scales)
    assert latents.ids.shape == (2, sum(rows * columns for rows, columns in sizes)) and latents.loss is None
    assert [part.shape[1:] for part in quantizer.split(latents.ids, scales=scales)] == list(sizes)
    torch.testing.assert_close(quantizer.lookup(latents.ids, scales=scales), latents.z)
    errors = [(total - features).square().mean() for total in quantizer.cumulative(latents.ids, scales=scales)]
    assert errors[-1] <= errors[0]


def test_generation_sees_what_teacher_forcing_shows() -> None:
    quantizer = bottleneck(num_blends=0).eval()
    ids = quantizer(torch.randn(2, 4, 4, 8)).ids
    total, following = None, []
    for number, part in enumerate(quantizer.split(ids)):
        one_hot = torch.nn.functional.one_hot(part, 50).float()
        torch.testing.assert_close(quantizer.mix(one_hot), quantizer.vectors(part))
        total, shown = quantizer.add_scale(total, quantizer.vectors(part), number)
        following.append(shown.flatten(1, 2))
    torch.testing.assert_close(quantizer.next_scale_inputs(ids), torch.cat(following[:-1], dim=1))
    torch.testing.assert_close(total, quantizer.lookup(ids))


def test_losses_reach_codes_blends_and_features() -> None:
    quantizer = bottleneck(num_blends=0).train()
    features = torch.randn(2, 4, 4, 8, requires_grad=True)
    losses = quantizer(features).loss
    assert set(losses) == {"codebook", "commitment"}
    torch.testing.assert_close(losses["codebook"], losses["commitment"])
    (grad,) = torch.autograd.grad(losses["commitment"], features, retain_graph=True)
    assert grad.abs().sum() > 0
    losses["codebook"].backward()
    assert features.grad is None and all(parameter.grad.abs().sum() > 0 for parameter in quantizer.parameters())


def test_without_blending_and_by_angle() -> None:
    quantizer = bottleneck(blend=0.0, metric="cosine").eval()
    features = quantizer.vectors(torch.randint(50, (1, 4, 4)))
    ids = quantizer(3 * features, scales=(4,)).ids
    assert torch.equal(quantizer.lookup(ids, scales=(4,)), features)  # codes are added as they are
    assert not any("blends" in name for name in quantizer.state_dict())


def test_blends_of_the_published_model() -> None:
    assert [blend_of_scale(scale, 10, 4) for scale in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert [blend_of_scale(scale, 5, 5) for scale in range(5)] == list(range(5))
    assert blend_of_scale(0, 1, 1) == 0


def test_bfloat16() -> None:
    quantizer = bottleneck().bfloat16().eval()
    latents = quantizer(torch.randn(1, 4, 4, 8).bfloat16())
    assert latents.z.dtype == quantizer.lookup(latents.ids).dtype == torch.bfloat16


def test_saved_and_loaded(tmp_path) -> None:
    quantizer = bottleneck(scales=NON_SQUARE).eval()
    quantizer.save_pretrained(tmp_path)
    features = torch.randn(1, 5, 7, 8)
    assert torch.equal(Block.from_pretrained(tmp_path)(features).z, quantizer(features).z)


def test_what_does_not_fit_is_refused() -> None:
    quantizer = bottleneck()
    with pytest.raises(ValueError, match="the map is 5x4; accepted: 4x4"):
        quantizer(torch.zeros(1, 5, 4, 8))
    with pytest.raises(ValueError, match="there are 20 ids; accepted: 21, for the scales 1x1, 2x2, 4x4"):
        quantizer.lookup(torch.zeros(1, 20, dtype=torch.long))
    with pytest.raises(ValueError, match=r"accepted: \[0, 49\]"):
        quantizer.lookup(torch.full((1, 21), 50))
    with pytest.raises(ValueError, match="vectors have 1x1 places; accepted: 2x2"):
        quantizer.add_scale(None, torch.zeros(1, 1, 1, 8), 1)
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantizer(torch.full((1, 4, 4, 8), torch.nan))
    with pytest.raises(ValueError, match="scales is empty"):
        bottleneck(scales=())
