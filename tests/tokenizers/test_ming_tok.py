import pytest
import torch
from PIL import Image

from mmblocks import Block, Latents
from mmblocks.tokenizers.ming_tok.tokenizer import MingTok
from mmblocks.tokenizers.ming_tok.vit import MingTokEncoder


def tokenizer() -> MingTok:
    torch.manual_seed(0)
    return MingTok(
        image_size=16,
        patch_size=8,
        latent_dim=4,
        encoder_size=(64, 1),
        semantic_size=(128, 2),
        pixel_size=(64, 1),
        pixel_patch_size=4,
        latent_mean=0.3,
        latent_std=2.0,
    )


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (24, 8)])
def test_latents_and_features_of_any_size(size) -> None:
    ming = tokenizer().eval()
    pixels = torch.rand(1, 3, *size)
    latents = ming.encode(pixels)
    grid = (size[0] // 8, size[1] // 8)
    assert latents.z.shape == (1, *grid, 4) and latents.ids is None and latents.loss is None
    assert ming.semantic(latents).shape == (1, *grid, 128)
    rebuilt = ming.decode(latents)
    assert rebuilt.shape == pixels.shape and rebuilt.min() >= 0 and rebuilt.max() <= 1
    assert torch.equal(ming.encode(pixels).z, latents.z)


def test_latents_are_normalised_and_restored() -> None:
    ming = tokenizer().eval()
    features = torch.randn(1, 2, 2, 4)
    z = ming.bottleneck(features).z
    torch.testing.assert_close(z, (features - 0.3) / 2)
    seen = []
    ming.decoder.semantic.project.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    ming.semantic(z)
    torch.testing.assert_close(seen[0], features.flatten(1, 2))


def test_semantic_features_know_only_what_came_before() -> None:
    ming = tokenizer().eval()
    z = torch.randn(2, 2, 3, 4)
    row = ming.semantic(z).flatten(1, 2)
    torch.testing.assert_close(ming.semantic(z.flatten(1, 2)[:, :4]), row[:, :4], atol=1e-5, rtol=1e-4)
    z[:, 1, 2] = 0
    assert not torch.allclose(ming.semantic(Latents(z=z)).flatten(1, 2)[:, 5], row[:, 5])


def test_gradients_reach_every_parameter() -> None:
    ming = tokenizer().train()
    ming.decode(ming.encode(torch.rand(2, 3, 16, 16))).square().mean().backward()
    assert not [name for name, parameter in ming.named_parameters() if parameter.grad is None or not parameter.grad.any()]


def test_what_does_not_fit_is_refused() -> None:
    ming = tokenizer()
    with pytest.raises(ValueError, match="multiples of 8x8, such as 8x24"):
        ming.encode(torch.rand(1, 3, 9, 21))
    with pytest.raises(ValueError, match="accepted: Latents"):
        ming.decode(torch.zeros(1, 2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="nan"):
        ming.encode(torch.full((1, 3, 8, 8), torch.nan))
    with pytest.raises(ValueError, match="dim is 96"):
        MingTokEncoder(dim=96)


@pytest.mark.unchecked
def test_what_has_another_type_or_shape_is_refused() -> None:
    ming = tokenizer()
    with pytest.raises(ValueError, match=r"latents have shape \(1, 4, 4\); accepted: \(B, h, w, D\)"):
        ming.decode(Latents(z=torch.zeros(1, 4, 4)))
    with pytest.raises(TypeError, match="uint8"):
        ming.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_saved_and_loaded(tmp_path) -> None:
    ming = tokenizer().eval()
    ming.save_pretrained(tmp_path / "ming")
    again = Block.from_pretrained(tmp_path / "ming")
    pixels = torch.rand(1, 3, 16, 8)
    assert torch.equal(again.decode(again.encode(pixels)), ming.decode(ming.encode(pixels))) and again.config == ming.config


def test_bfloat16() -> None:
    ming = tokenizer().bfloat16().eval()
    latents = ming.encode(torch.rand(1, 3, 8, 24).bfloat16())
    assert latents.z.dtype == torch.bfloat16 and ming.decode(latents).isfinite().all()


def test_photographs_become_squares() -> None:
    assert tokenizer().preprocess(Image.new("RGBA", (50, 31))).shape == (3, 16, 16)
