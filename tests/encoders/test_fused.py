import pytest
import torch
from torch import nn

from mmblocks import Block
from mmblocks.connectors.mlp import MLPProjector
from mmblocks.embedders.encoder_embedder import EncoderEmbedder
from mmblocks.encoders.fused import ChannelFusion, DualResolution, EncoderGroup, TokenConcat, TokenInterleave


class Patches(Block):
    """Takes any whole patches."""

    def __init__(self, *, dim: int = 6, patch_size: int = 4) -> None:
        super().__init__()
        self.dim, self.patch_size = dim, patch_size
        self.conv = nn.Conv2d(3, dim, patch_size, patch_size)

    def forward(self, pixels):
        return self.conv(pixels).permute(0, 2, 3, 1)

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"image is {height}x{width}; accepted: multiples of {self.patch_size}")
        return height // self.patch_size, width // self.patch_size


class Square(Patches):
    """Takes one size."""

    image_size, grid = (16, 16), (8, 8)

    def __init__(self, *, dim: int = 5) -> None:
        super().__init__(dim=dim, patch_size=2)


def both() -> dict[str, Block]:
    torch.manual_seed(0)
    return {"free": Patches(), "square": Square()}


PIXELS = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def make(kind) -> Block:
    if kind is DualResolution:
        torch.manual_seed(0)
        return DualResolution(encoders={"low": Patches(), "high": Square()})
    return kind(encoders=both(), **({"dim": 7} if kind in (TokenInterleave, TokenConcat) else {}))


def test_each_encoder_names_its_grid() -> None:
    group = EncoderGroup(encoders=both())
    assert group.grids(8, 12) == {"free": (2, 3), "square": (8, 8)} and group.dims == {"free": 6, "square": 5}
    free, square = group(PIXELS)
    assert free.shape == (2, 2, 3, 6) and square.shape == (2, 8, 8, 5)
    whole = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(group(whole)[1], group.encoders["square"](whole))


@pytest.mark.parametrize("kind", [ChannelFusion, TokenInterleave, TokenConcat, DualResolution])
def test_every_fusion_embeds_trains_and_is_saved(kind, tmp_path) -> None:
    fused = make(kind)
    features = fused(PIXELS)
    assert features.shape == (2, *fused.grid_of(8, 12), fused.dim)
    features.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in fused.parameters())
    fused.save_pretrained(tmp_path / "fused")
    torch.testing.assert_close(Block.from_pretrained(tmp_path / "fused")(PIXELS), features)
    embedder = EncoderEmbedder(encoder=fused, connector=MLPProjector(in_dim=fused.dim, dim=4))
    tokens = embedder([PIXELS[0], torch.rand(3, 4, 4)])
    assert len(tokens.embeds) == len(embedder.layout(8, 12).kind) + len(embedder.layout(4, 4).kind)
    assert fused.bfloat16()(PIXELS.bfloat16()).dtype == torch.bfloat16


def test_side_by_side() -> None:
    fused = ChannelFusion(encoders=both(), grid=(8, 8))
    whole = torch.rand(1, 3, 32, 32)
    features = fused(whole)
    torch.testing.assert_close(features[..., :6], fused.encoders["free"](whole))
    assert features.shape == (1, 8, 8, 11) and fused.grid_of(32, 32) == (8, 8)


def test_in_turn() -> None:
    fused = make(TokenInterleave)
    features = fused(PIXELS)
    free = fused.projections["free"](fused.encoders["free"](PIXELS))
    torch.testing.assert_close(features[:, :, 0::2], free)
    assert fused.grid_of(8, 12) == (2, 6)


def test_one_after_the_other() -> None:
    fused = make(TokenConcat)
    free = fused.projections["free"](fused.encoders["free"](PIXELS)) + fused.marks[0]
    torch.testing.assert_close(fused(PIXELS)[:, :6], free.flatten(1, 2))
    assert fused.grid_of(8, 12) == (6 + 64,)


def test_a_closed_gate_lets_nothing_through() -> None:
    fused = make(DualResolution)
    nn.init.zeros_(fused.gate[2].weight)
    nn.init.zeros_(fused.gate[2].bias)
    low = fused.encoders["low"](PIXELS)
    near = fused.from_low(low.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(fused(PIXELS), low + near)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: EncoderGroup(encoders={}), ValueError, "encoders is empty"),
        (
            lambda: EncoderGroup(encoders={"a": MLPProjector(in_dim=3, dim=4)}),
            TypeError,
            "a MLPProjector, does not name",
        ),
        (lambda: EncoderGroup(encoders=both()).grids(9, 8), ValueError, "encoder 'free': image is 9x8; accepted: multiples of 4"),
        (lambda: ChannelFusion(encoders=both())(PIXELS * 3), ValueError, r"accepted: \[0, 1\]"),
        (lambda: DualResolution(encoders=both()), ValueError, "encoders are free, square; accepted: 'low' and 'high'"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
