"""Every encoder that is made of others, around every other: they work and name their grid, or say why not."""

import pytest
import torch
from PIL import Image as PILImage

from mmblocks import Block
from mmblocks.connectors import MLPProjector
from mmblocks.embedders import EncoderEmbedder
from mmblocks.encoders import (
    ChannelFusion,
    DualResolution,
    EncoderGroup,
    EVACLIPVision,
    NativeResolution,
    TiledEncoder,
    TimmEncoder,
    TokenConcat,
    TokenInterleave,
)

TOWER = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "patch_size": 14}
SIZE = (56, 28)
PIXELS = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def eva(size: tuple[int, int] = (28, 28), **options) -> EVACLIPVision:
    return EVACLIPVision(tower=TOWER | {"image_size": size, **options}, embed_dim=8)


def any_size() -> EVACLIPVision:
    return eva(any_size=True)


ONE = {
    "one size": eva,
    "any size": any_size,
    "same size": lambda: ChannelFusion(encoders={"a": eva(), "b": eva()}),
    "two sizes": lambda: ChannelFusion(encoders={"a": eva(), "b": eva((42, 42))}),
    "in turn": lambda: TokenInterleave(encoders={"a": eva(), "b": any_size()}, dim=6),
    "dual": lambda: DualResolution(encoders={"low": eva(), "high": eva((56, 56))}),
    "native": lambda: NativeResolution(encoder=any_size(), multiple=28, min_pixels=28**2),
    "in a row": lambda: TokenConcat(encoders={"a": eva(), "b": any_size()}, dim=6),
    "tiles": lambda: TiledEncoder(encoder=eva()),
    "tiles of any size": lambda: TiledEncoder(encoder=any_size(), tile=(28, 28)),
}
AROUND = {
    "tiled": lambda one: TiledEncoder(encoder=one, tile=(28, 28)),
    "side by side": lambda one: ChannelFusion(encoders={"a": one, "b": eva()} if two_axes(one) else {"a": one}),
    "in turn": lambda one: TokenInterleave(encoders={"a": one, "b": eva()} if two_axes(one) else {"a": one}, dim=6),
    "in a row": lambda one: TokenConcat(encoders={"a": one, "b": any_size()}, dim=6),
    "dual": lambda one: DualResolution(encoders={"low": one, "high": eva() if two_axes(one) else one}),
    "native": lambda one: NativeResolution(encoder=one, multiple=28, min_pixels=28**2),
}
REFUSED = {
    ("tiled", "tiles"): (ValueError, r"TiledEncoder gives a grid of \(1, 2, 2\); accepted: rows and columns, or tokens"),
    ("tiled", "tiles of any size"): (ValueError, r"TiledEncoder gives a grid of \(1, 2, 2\)"),
    ("native", "one size"): (ValueError, "EVACLIPVision takes images of one size"),
    **{(kind, "in a row"): (ValueError, r"'(a|low)' gives features on a grid of \(.*,\)") for kind in ("side by side", "in turn")},
    ("dual", "in a row"): (ValueError, r"'low' gives features on a grid of \(.*,\)"),
}


def two_axes(one: Block) -> bool:
    return not isinstance(one, TiledEncoder)


@pytest.mark.parametrize("inner", ONE)
@pytest.mark.parametrize("outer", AROUND)
def test_what_comes_out_is_what_was_named(outer, inner, tmp_path) -> None:
    torch.manual_seed(0)
    if (outer, inner) in REFUSED:
        error, message = REFUSED[outer, inner]
        with pytest.raises(error, match=message):
            AROUND[outer](ONE[inner]()).grid_of(*SIZE)
        return
    encoder = AROUND[outer](ONE[inner]()).eval()
    features = encoder(PIXELS)
    assert features.shape == (2, *encoder.grid_of(*SIZE), encoder.dim)
    torch.testing.assert_close(encoder(PIXELS[1:]), features[1:], atol=1e-5, rtol=1e-4)
    embedder = EncoderEmbedder(encoder=encoder, connector=MLPProjector(in_dim=encoder.dim, dim=4))
    assert len(embedder(list(PIXELS)).embeds) == 2 * len(embedder.layout(*SIZE).kind)
    encoder.save_pretrained(tmp_path)
    assert torch.equal(Block.from_pretrained(tmp_path)(PIXELS), features)


@pytest.mark.parametrize("kind", [ChannelFusion, TokenInterleave, DualResolution])
def test_tiles_are_fused_tile_by_tile(kind) -> None:
    torch.manual_seed(0)
    parts = {"low": eva(), "high": eva((28, 28), patch_size=7)}
    options = {"dim": 6} if kind is TokenInterleave else {}
    whole = kind(encoders=parts, **options).eval()
    inside = kind(encoders={name: TiledEncoder(encoder=part) for name, part in parts.items()}, **options).eval()
    inside.load_state_dict(
        {
            name.replace("low.", "low.encoder.").replace("high.", "high.encoder.") if name.startswith("encoders") else name: value
            for name, value in whole.state_dict().items()
        }
    )
    torch.testing.assert_close(inside(PIXELS), TiledEncoder(encoder=whole)(PIXELS))


def test_tiles_of_other_counts_are_refused() -> None:
    fused = ChannelFusion(encoders={"all": TiledEncoder(encoder=eva()), "few": TiledEncoder(encoder=eva(), thumbnail=False)})
    with pytest.raises(
        ValueError, match=r"'few' gives features on a grid of \(2, 2, 2\); accepted: rows and .* tiles \(3,\) of 'all'"
    ):
        fused.grid_of(*SIZE)


def test_a_group_names_the_size_that_its_encoders_share() -> None:
    assert ONE["same size"]().image_size == (28, 28)
    assert ONE["two sizes"]().image_size is None and EncoderGroup(encoders={"a": any_size()}).image_size is None
    tiled = TiledEncoder(encoder=ONE["same size"]())
    assert tiled.tile == (28, 28) and tiled.dim == 32 and tiled.grid_of(56, 56) == (5, 2, 2)
    assert tiled.preprocess(PILImage.new("RGB", (60, 31))).shape == (3, 28, 56)
    first = tiled(PIXELS)[:, 0]
    torch.testing.assert_close(first, tiled.encoder(PIXELS[:, :, :28]))


def test_several_features_go_through_a_connector_tile_by_tile() -> None:
    class Sum(Block):
        def __init__(self) -> None:
            super().__init__()
            self.dim = 16

        def forward(self, features):
            return features[0] + features[1]

    group = EncoderGroup(encoders={"a": eva(), "b": eva()})
    tiled = TiledEncoder(encoder=group, connector=Sum())
    assert tiled(PIXELS).shape == (2, *tiled.grid_of(*SIZE), tiled.dim) == (2, 3, 2, 2, 16)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: TiledEncoder(encoder=ONE["two sizes"]()),
            TypeError,
            r"takes several sizes; accepted: .* or tile=\(height, width\)",
        ),
        (lambda: TiledEncoder(encoder=eva(), tile=(56, 56)), ValueError, r"tile is \(56, 56\); accepted: \(28, 28\), the one size"),
        (lambda: TiledEncoder(encoder=any_size(), tile=(20, 28)), ValueError, "20x28; accepted: multiples of 14"),
        (lambda: TiledEncoder(encoder=ONE["two sizes"](), tile=(0, 28)), ValueError, r"tile is \(0, 28\); accepted: sides"),
        (lambda: TiledEncoder(encoder=EncoderGroup(encoders={"a": eva()})), TypeError, "EncoderGroup does not name its dim"),
        (lambda: TokenConcat(encoders={"a": EncoderGroup(encoders={"a": eva()})}, dim=4), TypeError, "does not name its width"),
        (lambda: NativeResolution(encoder=ONE["two sizes"](), multiple=28).tokens(PIXELS), TypeError, "has no method tokens"),
        (lambda: NativeResolution(encoder=any_size(), multiple=0), ValueError, "multiple is 0"),
        (
            lambda: NativeResolution(encoder=any_size(), multiple=14, min_pixels=9, max_pixels=8),
            ValueError,
            "min_pixels 9, max_pixels 8",
        ),
        (lambda: ChannelFusion(encoders={"a": eva()}, grid=(0, 2)), ValueError, r"grid is \(0, 2\)"),
        (lambda: TokenConcat(encoders={"a": eva()}, dim=0), ValueError, "dim is 0"),
    ],
)
def test_what_does_not_go_together_is_refused(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


def test_towers_of_timm_in_tiles() -> None:
    convolutional = TimmEncoder(name="test_convnext").eval()
    tiled = TiledEncoder(encoder=convolutional, tile=(64, 64), thumbnail=False)
    pixels = torch.rand(1, 3, 64, 128)
    torch.testing.assert_close(tiled(pixels)[:, 1], convolutional(pixels[..., 64:]))
    fused = ChannelFusion(encoders={"one": TimmEncoder(name="test_vit", any_size=True), "other": convolutional}).eval()
    assert TiledEncoder(encoder=fused, tile=(64, 64))(pixels).shape == (1, 3, 4, 4, 64 + convolutional.dim)


def test_a_tower_that_does_not_say_which_sizes_it_takes() -> None:
    tower = TimmEncoder(name="test_coatnet").eval()
    assert tower(torch.rand(1, 3, 160, 160)).shape == (1, *tower.grid_of(160, 160), tower.dim)
    with pytest.raises(ValueError, match=r"image is 96x128, of which test_coatnet makes no grid; accepted: .* such as 160x160"):
        tower(torch.rand(1, 3, 96, 128))
