import pytest
import torch
from PIL import Image as PILImage

from mmblocks import Block
from mmblocks.connectors.pixel_shuffle import PixelShuffle
from mmblocks.embedders.encoder_embedder import EncoderEmbedder
from mmblocks.encoders.eva_clip_vision import EVACLIPVision
from mmblocks.encoders.high_resolution import NativeResolution, TiledEncoder, choose_tiles

SIZES = {"image_size": (16, 16), "patch_size": 4, "dim": 24, "num_layers": 1, "num_heads": 2, "mlp_dim": 37}


def eva(**options) -> EVACLIPVision:
    torch.manual_seed(0)
    return EVACLIPVision(tower=SIZES | {"swiglu": True, "attention_norm": True, "rope": True, "rope_grid": (4, 4)} | options).eval()


@pytest.mark.parametrize(
    ("height", "width", "tiles"),
    [(448, 448, (1, 1)), (896, 896, (2, 2)), (448, 896, (1, 2)), (900, 310, (3, 1)), (1000, 1400, (2, 3)), (10, 2000, (1, 6))],
)
def test_the_tiles_have_the_shape_of_the_image(height, width, tiles) -> None:
    assert choose_tiles(height, width, tile=(448, 448), max_tiles=6) == tiles


def test_tiles_and_a_thumbnail(tmp_path) -> None:
    tiled = TiledEncoder(encoder=eva(), max_tiles=4).eval()
    pixels = tiled.preprocess(PILImage.linear_gradient("L").resize((60, 31)))[None]
    assert pixels.shape == (1, 3, 16, 32) and tiled.tiles_of(16, 32) == (1, 2)
    features = tiled(pixels)
    assert features.shape == (1, *tiled.grid_of(16, 32), tiled.dim) == (1, 3, 4, 4, 24)
    torch.testing.assert_close(features[:, 1], tiled.encoder(pixels[..., 16:]))
    flat = torch.full((2, 3, 16, 32), 0.3)
    torch.testing.assert_close(tiled(flat)[:, 2], tiled.encoder(flat[..., :16]))
    assert tiled(torch.rand(2, 3, 16, 16)).shape == (2, 1, 4, 4, 24)  # one tile is its own thumbnail
    tall = torch.rand(1, 3, 32, 16)
    stitched = tiled.stitched(tiled(tall), (2, 1))
    torch.testing.assert_close(stitched[:, 4:], tiled.encoder(tall[:, :, 16:]))
    tiled.save_pretrained(tmp_path / "tiled")
    torch.testing.assert_close(Block.from_pretrained(tmp_path / "tiled")(pixels), features)


def test_each_tile_goes_through_the_connector_by_itself() -> None:
    tiled = TiledEncoder(encoder=eva(), max_tiles=4, thumbnail=False, connector=PixelShuffle())
    assert tiled.grid_of(16, 32) == (2, 2, 2) and tiled(torch.rand(1, 3, 16, 32)).shape == (1, 2, 2, 2, 96)
    embedder = EncoderEmbedder(encoder=tiled, connector=torch_identity())
    assert embedder.layout(16, 32).grid[-1].tolist() == [1, 1, 1]
    assert embedder([torch.rand(3, 16, 32), torch.rand(3, 16, 16)]).embeds.shape == (12, 96)


def torch_identity() -> Block:
    class Same(Block):
        def forward(self, features):
            return features

    return Same()


def test_images_at_their_own_size() -> None:
    native = NativeResolution(encoder=eva(any_size=True), multiple=8, min_pixels=64, max_pixels=1024)
    pixels = native.preprocess(PILImage.new("RGB", (100, 50)))
    assert pixels.shape == (3, 16, 40) and native.grid_of(16, 40) == (4, 10)
    assert native(pixels[None]).shape == (1, 4, 10, 24) and native.tokens(pixels[None]).shape == (1, 41, 24)


def test_any_size_has_the_numbers_of_a_tower_of_that_size() -> None:
    free, pixels = eva(any_size=True), torch.rand(2, 3, 24, 16)
    fixed = eva()
    fixed.load_state_dict(free.state_dict())
    torch.testing.assert_close(free(pixels), fixed.resized((24, 16))(pixels))
    torch.testing.assert_close(free(pixels[:, :, :16]), fixed(pixels[:, :, :16]))
    free(pixels).sum().backward()
    assert free.tower.vit.pos_embed.grad.abs().sum() > 0
    keep = torch.tensor([[0, 20], [5, 23]])
    assert free.tokens(pixels, keep=keep).shape == (2, 3, 24)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: TiledEncoder(encoder=eva(any_size=True)),
            TypeError,
            "takes several sizes; accepted: one for images of one size, or tile",
        ),
        (lambda: TiledEncoder(encoder=PixelShuffle()), TypeError, "PixelShuffle does not name its grid"),
        (lambda: TiledEncoder(encoder=eva(), max_tiles=0), ValueError, "min_tiles is 1, max_tiles 0"),
        (lambda: TiledEncoder(encoder=eva())(torch.zeros(1, 3, 16, 20)), ValueError, "1 to 12 whole tiles of 16x16"),
        (lambda: TiledEncoder(encoder=eva(), max_tiles=2).grid_of(32, 32), ValueError, "image is 32x32; accepted: 1 to 2 whole"),
        (lambda: NativeResolution(encoder=eva(), multiple=4), ValueError, "takes images of one size"),
        (lambda: NativeResolution(encoder=PixelShuffle(), multiple=4), TypeError, "does not name its grid"),
        (
            lambda: eva(any_size=True)(torch.zeros(1, 3, 16, 22)),
            ValueError,
            "16x22; accepted: multiples of 4, such as 16x24",
        ),
        (lambda: choose_tiles(0, 5, tile=(4, 4), max_tiles=2), ValueError, "image is 0x5"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
