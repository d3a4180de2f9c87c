"""FLUX's autoencoder by its own names: against plain torch in the order of its own code, and back to the file."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import conv2d, group_norm, interpolate, pad, scaled_dot_product_attention, silu

from mmblocks.tokenizers import FluxAutoencoder

ARGUMENTS = {"block_out_channels": [8, 16, 24, 24], "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 2}


class Plain:
    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.w = weights

    def conv(self, name: str, x: Tensor, padding: int = 1, stride: int = 1) -> Tensor:
        return conv2d(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"], padding=padding, stride=stride)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return group_norm(x, 4, self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-6)

    def block(self, name: str, x: Tensor) -> Tensor:
        h = self.conv(f"{name}.conv1", silu(self.norm(f"{name}.norm1", x)))
        h = self.conv(f"{name}.conv2", silu(self.norm(f"{name}.norm2", h)))
        return h + (self.conv(f"{name}.nin_shortcut", x, 0) if f"{name}.nin_shortcut.weight" in self.w else x)

    def middle(self, side: str, x: Tensor) -> Tensor:
        x = self.block(f"{side}.mid.block_1", x)
        normed = self.norm(f"{side}.mid.attn_1.norm", x)
        q, k, v = (self.conv(f"{side}.mid.attn_1.{one}", normed, 0).flatten(2).mT[:, None] for one in "qkv")
        seen = scaled_dot_product_attention(q, k, v)[:, 0].mT.unflatten(2, x.shape[2:])
        return self.block(f"{side}.mid.block_2", x + self.conv(f"{side}.mid.attn_1.proj_out", seen, 0))

    def out(self, side: str, x: Tensor) -> Tensor:
        return self.conv(f"{side}.conv_out", silu(self.norm(f"{side}.norm_out", x)))

    def encode(self, pixels: Tensor) -> Tensor:
        x = self.conv("encoder.conv_in", pixels * 2 - 1)
        for level in range(4):
            x = self.block(f"encoder.down.{level}.block.0", x)
            if level < 3:
                x = self.conv(f"encoder.down.{level}.downsample.conv", pad(x, (0, 1, 0, 1)), 0, 2)
        mean, _ = self.out("encoder", self.middle("encoder", x)).chunk(2, dim=1)
        return 0.3611 * (mean - 0.1159)

    def decode(self, z: Tensor) -> Tensor:
        x = self.middle("decoder", self.conv("decoder.conv_in", z / 0.3611 + 0.1159))
        for level in (3, 2, 1, 0):
            x = self.block(f"decoder.up.{level}.block.1", self.block(f"decoder.up.{level}.block.0", x))
            if level:
                x = self.conv(f"decoder.up.{level}.upsample.conv", interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.out("decoder", x)


def test_it_computes_what_flux_s_own_code_does_and_goes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = FluxAutoencoder(arguments=ARGUMENTS).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.15)
    made.to_upstream(tmp_path / "one")
    assert [file.name for file in (tmp_path / "one").iterdir()] == ["ae.safetensors"]
    weights = load_file(tmp_path / "one" / "ae.safetensors")
    plain, read = Plain(weights), FluxAutoencoder.from_pretrained(tmp_path / "one", arguments=ARGUMENTS)
    pixels = torch.rand(2, 3, 16, 24)
    z = read.encode(pixels).z
    torch.testing.assert_close(z.movedim(-1, 1), plain.encode(pixels), atol=1e-4, rtol=1e-4)
    wanted = ((plain.decode(z.movedim(-1, 1)) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(read.decode(z), wanted, atol=1e-4, rtol=1e-4)
    assert wanted.std() > 0.05
    read.to_upstream(tmp_path / "two")
    again = load_file(tmp_path / "two" / "ae.safetensors")
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_the_published_file_has_so_many_tensors_and_numbers() -> None:
    (layout,) = FluxAutoencoder.layouts
    with torch.device("meta"):
        model = FluxAutoencoder(**layout.arguments({}))
    names = {layout.to_theirs(name)[0] for name, _ in model.named_parameters()}
    assert len(names) == 244
    assert sum(parameter.numel() for parameter in model.parameters()) == 83_819_683
