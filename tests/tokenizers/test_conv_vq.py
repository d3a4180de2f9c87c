import pytest
import torch

from mmblocks import Block
from mmblocks.tokenizers import ConvVQ


def tokenizer() -> ConvVQ:
    torch.manual_seed(0)
    return ConvVQ(channels=(8, 12), num_codes=16, code_dim=4)


@pytest.mark.parametrize("size", [(4, 4), (28, 28), (8, 20)])
def test_codes_decode_to_what_the_latents_decode_to(size) -> None:
    vq = tokenizer().eval()
    pixels = torch.rand(2, 3, *size)
    latents = vq.encode(pixels)
    assert latents.ids.shape == (2, size[0] // 4, size[1] // 4) and latents.loss is None
    decoded = vq.decode(latents.ids)
    assert decoded.shape == pixels.shape and decoded.min() >= 0 and decoded.max() <= 1
    torch.testing.assert_close(decoded, vq.decode(latents), atol=1e-6, rtol=1e-5)


def test_codes_are_the_nearest() -> None:
    vq = tokenizer().eval()
    vq.fit_codebook(torch.rand(4, 3, 16, 16))
    pixels = torch.rand(3, 3, 8, 8)
    features = vq.features(pixels)
    wanted = torch.cdist(features.flatten(0, 2), vq.bottleneck.codes).argmin(1).view(3, 2, 2)
    ids = vq.encode(pixels).ids
    assert torch.equal(ids, wanted) and len(ids.unique()) > 1


def test_losses_and_straight_through_gradients() -> None:
    vq = tokenizer().train()
    latents = vq.encode(torch.rand(2, 3, 8, 8))
    features = vq.features(torch.zeros(1, 3, 4, 4))
    assert set(latents.loss) == {"codebook", "commitment"}
    torch.testing.assert_close(latents.loss["codebook"], latents.loss["commitment"])
    (codes_gradient,) = torch.autograd.grad(latents.loss["codebook"], vq.bottleneck.codes, retain_graph=True)
    assert codes_gradient[latents.ids.unique()].abs().sum() > 0
    assert torch.autograd.grad(latents.loss["commitment"], vq.bottleneck.codes, allow_unused=True, retain_graph=True) == (None,)

    quantized = vq.bottleneck(features)
    upstream = torch.randn_like(features)
    (passed,) = torch.autograd.grad((quantized.z * upstream).sum(), features)
    assert torch.equal(passed, upstream)


def test_reviving_moves_unused_codes_to_features_there_are() -> None:
    vq = tokenizer()
    pixels = torch.rand(8, 3, 16, 16)
    before = len(vq.encode(pixels).ids.unique())
    assert vq.revive_codes(pixels, torch.Generator().manual_seed(0)) == 16 - before
    assert len(vq.encode(pixels).ids.unique()) > before


def test_a_fitted_codebook_finds_the_clusters() -> None:
    vq = tokenizer()
    centres = torch.randn(16, 4, generator=torch.Generator().manual_seed(1)) * 10
    vectors = centres.repeat(50, 1) + 0.01 * torch.randn(800, 4, generator=torch.Generator().manual_seed(2))
    vq.bottleneck.fit(vectors, num_iterations=30, generator=torch.Generator().manual_seed(3))
    error = (vq.bottleneck(vectors).z - vectors).square().mean()
    assert error < centres.var() / 20
    with pytest.raises(ValueError, match="features holds no vector; accepted: at least one"):
        vq.bottleneck.fit(vectors[:0])


def test_a_batch_with_nan_never_reaches_the_codebook() -> None:
    vq = tokenizer()
    codes = vq.bottleneck.codes.detach().clone()
    pixels = torch.rand(2, 3, 8, 8)
    pixels[0, 0, 0, 0] = float("nan")
    for use in (vq.encode, vq.fit_codebook, vq.revive_codes):
        with pytest.raises(ValueError, match="nan"):
            use(pixels)
    with pytest.raises(ValueError, match="NaN or infinity"):
        vq.bottleneck(torch.full((3, 4), float("inf")))
    assert torch.equal(vq.bottleneck.codes, codes)


@pytest.mark.parametrize("ids", [torch.tensor([[[16]]]), torch.tensor([[[-1]]])])
def test_ids_out_of_range_are_refused(ids) -> None:
    with pytest.raises(ValueError, match=r"accepted: \[0, 15\]"):
        tokenizer().decode(ids)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("pixels", "error", "message"),
    [
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), TypeError, "uint8"),
        (torch.zeros(3, 4, 4), ValueError, "accepted: "),
        (torch.zeros(1, 1, 4, 4), ValueError, r"\(1, 1, 4, 4\)"),
        (torch.zeros(1, 3, 6, 4), ValueError, "multiples of 4"),
        (torch.full((1, 3, 4, 4), 255.0), ValueError, r"\[255, 255\]"),
    ],
)
def test_pixels_that_do_not_fit_are_refused(pixels, error, message) -> None:
    with pytest.raises(error, match=message):
        tokenizer().encode(pixels)


def test_saved_and_loaded(tmp_path) -> None:
    vq = tokenizer().eval()
    vq.save_pretrained(tmp_path / "vq")
    again = Block.from_pretrained(tmp_path / "vq")
    pixels = torch.rand(1, 3, 8, 8)
    assert torch.equal(again.decode(again.encode(pixels)), vq.decode(vq.encode(pixels)))
    assert again.config == vq.config


def test_bfloat16_encodes_with_float32_distances() -> None:
    vq = tokenizer().bfloat16().eval()
    latents = vq.encode(torch.rand(1, 3, 8, 8).bfloat16())
    assert latents.z.dtype == torch.bfloat16 and vq.decode(latents).isfinite().all()
