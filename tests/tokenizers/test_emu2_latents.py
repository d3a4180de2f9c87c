import pytest
import torch
from torch.nn.functional import avg_pool2d

from mmblocks import Block
from mmblocks.layers.towers.eva import EvaTower
from mmblocks.tokenizers.emu2_latents import Emu2Latents, average_squares


def tokenizer(**options) -> Emu2Latents:
    torch.manual_seed(0)
    sizes = {"patch_size": 7, "dim": 12, "num_layers": 1, "num_heads": 2, "mlp_dim": 20}
    return Emu2Latents(**({"image_size": (28, 28), "num_tokens": 4} | sizes | options))


@pytest.mark.parametrize(("rows", "columns", "num_tokens"), [(8, 8, 4), (8, 8, 64), (9, 9, 4), (8, 8, 5), (6, 9, 4), (7, 7, 10)])
def test_averages_are_those_of_torch(rows, columns, num_tokens) -> None:
    patches = torch.randn(2, rows, columns, 3)
    side = int(min(rows, columns) // num_tokens**0.5)
    wanted = avg_pool2d(patches.permute(0, 3, 1, 2), side).permute(0, 2, 3, 1)
    torch.testing.assert_close(average_squares(patches, num_tokens), wanted)


@pytest.mark.parametrize("batch", [1, 3])
def test_latents_are_averages_without_the_class_token(batch) -> None:
    emu2 = tokenizer()
    pixels = torch.rand(batch, 3, 28, 28)
    latents = emu2.encode(pixels)
    assert latents.z.shape == (batch, 2, 2, 12) and latents.ids is None and latents.loss is None
    every = emu2.encode(pixels, num_tokens=16).z
    torch.testing.assert_close(latents.z[:, 0, 1], every[:, :2, 2:].mean(dim=(1, 2)))
    assert emu2.codebook_sizes == () and emu2.downsampling == (14, 14)
    latents.z.sum().backward()
    assert all(parameter.grad is not None for parameter in emu2.parameters())


def test_a_tower_may_be_handed_in(tmp_path) -> None:
    tower = EvaTower(image_size=(28, 42), patch_size=14, dim=8, num_layers=1, num_heads=2, mlp_dim=20)
    emu2 = tokenizer(encoder=tower, image_size=(28, 42), patch_size=14, num_tokens=1).eval()
    pixels = torch.rand(2, 3, 28, 42)
    latents = emu2.encode(pixels)
    assert latents.z.shape == (2, 1, 1, 8)
    emu2.save_pretrained(tmp_path / "emu2")
    assert torch.equal(Block.from_pretrained(tmp_path / "emu2").encode(pixels).z, latents.z)
    halved = Block.from_pretrained(tmp_path / "emu2", dtype=torch.bfloat16)
    assert halved.encode(pixels.bfloat16()).z.dtype == torch.bfloat16


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda emu2: emu2.decode(emu2.encode(torch.rand(1, 3, 28, 28))), "a diffusion model that is conditioned"),
        (lambda emu2: emu2.decode(torch.zeros(1, 4, dtype=torch.long)), "no codes to look up"),
        (lambda emu2: emu2.encode(torch.rand(1, 3, 28, 35)), "pixels are 28x35; accepted: 28x28"),
        (lambda emu2: emu2.encode(torch.rand(1, 3, 28, 28), num_tokens=17), "num_tokens is 17; accepted: 1 to 16"),
        (lambda emu2: emu2.pool(torch.zeros(1, 16, 12)), "a class token and 4x4 patches"),
        (lambda emu2: tokenizer(num_tokens=0), "num_tokens is 0"),
    ],
)
def test_what_does_not_fit_is_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(tokenizer())
