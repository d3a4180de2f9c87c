"""Encoder and connector as one embedder: layouts, packing, sizes, and a model that trains with it."""

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mmblocks import Block, Decoder, LMHead, MultimodalModel, TextEmbedding, image, text
from mmblocks.connectors.causal_former import CausalFormer
from mmblocks.connectors.chain import ConnectorChain
from mmblocks.connectors.mlp import MLPProjector
from mmblocks.connectors.pixel_shuffle import PixelShuffle
from mmblocks.embedders.encoder_embedder import EncoderEmbedder
from mmblocks.layers.images.pixels import pixels_of
from mmblocks.roles import Embedder
from mmblocks.sequence.tokens import TokenKind


class Patches(Block):
    """An encoder for images of any size that is whole patches."""

    def __init__(self, *, patch_size: int = 4, dim: int = 6) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.conv = nn.Conv2d(3, dim, patch_size, patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.conv(pixels).permute(0, 2, 3, 1)

    def tokens(self, pixels: Tensor) -> Tensor:
        patches = self(pixels).flatten(1, 2)
        return torch.cat([patches.mean(1, keepdim=True), patches], dim=1)

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"image is {height}x{width}; accepted: multiples of {self.patch_size}")
        return height // self.patch_size, width // self.patch_size


class FixedPatches(Block):
    """An encoder for images of one size, as pretrained towers are."""

    image_size, grid = (8, 12), (2, 3)

    def __init__(self) -> None:
        super().__init__()
        self.patches = Patches()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.patches(pixels)

    def preprocess(self, picture: Image.Image) -> Tensor:
        return pixels_of(picture.resize((12, 8)))


def embedder(**options) -> EncoderEmbedder:
    torch.manual_seed(0)
    return EncoderEmbedder(**({"encoder": Patches(), "connector": MLPProjector(in_dim=6, dim=10)} | options))


def shuffled() -> EncoderEmbedder:
    return embedder(connector=ConnectorChain(parts=[PixelShuffle(), MLPProjector(in_dim=24, dim=10)]))


def queried() -> EncoderEmbedder:
    sizes = {"hidden_dim": 8, "num_layers": 1, "num_heads": 2, "head_dim": 4, "mlp_dim": 8}
    return embedder(connector=CausalFormer(in_dim=6, dim=10, num_queries=5, **sizes), class_token=True)


SIZES = [(8, 8), (8, 16), (24, 8), (8, 8)]


@pytest.mark.parametrize("make", [embedder, shuffled, queried])
def test_a_ragged_batch_equals_single_images(make) -> None:
    part, images = make(), [torch.rand(3, *size) for size in SIZES]
    assert isinstance(part, Embedder)
    tokens = part(images)
    for number, pixels in enumerate(images):
        single = part([pixels])
        torch.testing.assert_close(tokens.embeds[tokens.image == number], single.embeds)
        layout = part.layout(*pixels.shape[1:])
        assert torch.equal(single.grid, layout.grid) and torch.equal(single.kind, layout.kind)
        assert torch.equal(tokens.grid[tokens.image == number], layout.grid)


def test_places_are_those_behind_the_connector() -> None:
    assert embedder().layout(8, 12).grid.tolist() == [[0, row, column] for row in range(2) for column in range(3)]
    assert shuffled().layout(8, 16).grid.tolist() == [[0, 0, 0], [0, 0, 1]]
    assert queried().layout(8, 16).grid.tolist() == [[0, 0, number] for number in range(5)]
    assert (queried().layout(8, 16).kind == TokenKind.PATCH).all()


def test_the_class_token_comes_first() -> None:
    part, pixels = embedder(class_token=True), torch.rand(3, 8, 12)
    tokens = part([pixels]).embeds
    assert len(tokens) == len(part.layout(8, 12).kind) == 7
    torch.testing.assert_close(tokens[0], part.connector(part.encoder.tokens(pixels[None]))[0, 0])


def test_a_tower_of_one_size() -> None:
    part = embedder(encoder=FixedPatches())
    assert len(part.layout(8, 12).kind) == 6
    pixels = part.preprocess(Image.new("L", (5, 40)))
    assert part([pixels, pixels]).embeds.shape == (12, 10)
    with pytest.raises(ValueError, match="image is 12x8; accepted: 8x12"):
        part([torch.rand(3, 12, 8)])


def test_a_model_trains_with_it(tmp_path) -> None:
    part = shuffled()
    model = MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=9, dim=10), "vision": part},
        trunk=Decoder(dim=10, num_layers=1, num_heads=2, head_dim=4, mlp_dim=8),
        outputs={"lm": LMHead(dim=10, vocab_size=9)},
    )
    batch = model.batch_builder()(
        [[image(torch.rand(3, 8, 16)), text([1, 2, 3], target="lm")], [text([4]), image(torch.rand(3, 8, 8))]]
    )
    sum(model(batch).losses.values()).backward()
    assert all(parameter.grad is not None for parameter in part.parameters())
    part.save_pretrained(tmp_path / "part")
    pixels = [torch.rand(3, 8, 8)]
    torch.testing.assert_close(Block.from_pretrained(tmp_path / "part")(pixels).embeds, part(pixels).embeds)


class Liar(MLPProjector):
    """Names another grid than it gives."""

    def out_grid(self, grid):
        return (1, *grid[1:])


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: embedder()([]), ValueError, "images is empty"),
        (lambda: embedder()([torch.zeros(3, 8, 8, dtype=torch.uint8)]), TypeError, "uint8"),
        (lambda: embedder()([torch.full((3, 8, 8), torch.nan)]), ValueError, "nan"),
        (lambda: embedder().layout(9, 8), ValueError, "image is 9x8; accepted: multiples of 4"),
        (lambda: shuffled().layout(8, 12), ValueError, "image is 8x12: features are 2x3 tokens; accepted: multiples of 2"),
        (lambda: embedder().preprocess(Image.new("L", (8, 8))), TypeError, "Patches has no preprocess"),
        (
            lambda: embedder(connector=Liar(in_dim=6, dim=4))([torch.rand(3, 8, 8)]),
            ValueError,
            "gave 4 tokens for an image; accepted: 2",
        ),
        (lambda: embedder(encoder=MLPProjector(in_dim=3, dim=6)), TypeError, "encoder MLPProjector does not name its grid"),
        (lambda: embedder(encoder=WithoutTokens(), class_token=True), TypeError, "WithoutTokens has no method tokens"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


class WithoutTokens(Block):
    """Names its grid, and has no class token."""

    image_size, grid = (8, 8), (2, 2)
