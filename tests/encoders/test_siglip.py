"""SigLIP's tower as an encoder; see also the tests of Janus, which compare it with transformers."""

import pytest
import torch
from PIL import Image

from mmblocks.connectors import MLPProjector
from mmblocks.embedders import EncoderEmbedder
from mmblocks.encoders import SigLIPVision
from mmblocks.layers.towers.siglip import SiglipVision

SIZES = {"image_size": 32, "patch_size": 8, "dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 24}


def encoder(**options) -> SigLIPVision:
    torch.manual_seed(0)
    return SigLIPVision(**SIZES, **options).eval()


def test_features_are_those_of_the_tower_that_tokenizers_have() -> None:
    ours, tower = encoder(mean=(0.4, 0.5, 0.6), std=(0.5, 0.25, 0.5)), SiglipVision(**SIZES).eval()
    tower.load_state_dict(ours.tower.state_dict(), strict=False)
    pixels = torch.rand(2, 3, 32, 32)
    normal = (pixels - torch.tensor(ours.mean)[:, None, None]) / torch.tensor(ours.std)[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels).flatten(1, 2), tower(normal)[0])
        other = encoder(activation="gelu", mean=ours.mean, std=ours.std)
        assert not torch.equal(other(pixels), ours(pixels))


def test_an_embedder_lays_its_patches_out() -> None:
    embedder = EncoderEmbedder(encoder=encoder(), connector=MLPProjector(in_dim=16, dim=8))
    tokens = embedder([torch.rand(3, 32, 32)] * 2)
    assert tokens.embeds.shape == (32, 8)
    assert tokens.grid[:6].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3], [0, 1, 0], [0, 1, 1]]


@pytest.mark.parametrize(
    ("fit", "size", "coloured"),
    [
        ("stretch", (64, 16), (32, 32)),
        ("pad", (64, 40), (32, 20)),
        ("pad", (40, 64), (20, 32)),
        ("pad", (100, 1), (32, 14)),
        ("pad", (100, 65), (32, 20)),
        ("pad-rounded", (100, 65), (32, 21)),
    ],
)
def test_images_of_any_shape_become_squares(fit: str, size: tuple[int, int], coloured: tuple[int, int]) -> None:
    vision = encoder(fit=fit, mean=(0.2, 0.4, 0.6))
    pixels = vision.preprocess(Image.new("RGB", size, (255, 0, 0)))
    assert pixels.shape == (3, 32, 32)
    red = pixels[0] == 1
    assert (int(red.any(dim=0).sum()), int(red.any(dim=1).sum())) == coloured
    assert (pixels[:, ~red] == (torch.tensor([51, 102, 153]) / 255)[:, None]).all()
    columns, rows = (red.any(dim=axis).nonzero().flatten() for axis in (0, 1))
    assert all(int(own[0]) == (32 - len(own)) // 2 for own in (columns, rows))  # in the middle


@pytest.mark.unchecked
def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="fit is 'crop'; accepted: 'stretch', 'pad', 'pad-rounded'"):
        encoder(fit="crop")
    with pytest.raises(ValueError, match=r"accepted: \(B, 3, 32, 32\)"):
        encoder()(torch.rand(1, 3, 32, 40))
