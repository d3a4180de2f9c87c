import pytest
import torch

from mmblocks import Block
from mmblocks.tokenizers.titok.maskgit_vqgan import MaskGITVQGAN, OutputShortcutBlock


def tokenizer() -> MaskGITVQGAN:
    torch.manual_seed(0)
    return MaskGITVQGAN(num_codes=16, code_dim=8, channels=32, multipliers=(1, 2), num_blocks=1)


@pytest.mark.parametrize("size", [(2, 4), (8, 14)])
def test_codes_decode_to_what_the_latents_decode_to(size) -> None:
    vqgan = tokenizer().eval()
    pixels = torch.rand(1, 3, *size)
    latents = vqgan.encode(pixels)
    rebuilt = vqgan.decode(latents.ids)
    assert latents.ids.shape == (1, size[0] // 2, size[1] // 2) and rebuilt.shape == pixels.shape
    torch.testing.assert_close(rebuilt, vqgan.decode(latents), atol=1e-5, rtol=1e-4)


def test_where_the_width_changes_the_shortcut_reads_the_output() -> None:
    block = OutputShortcutBlock(32, 64)
    torch.nn.init.zeros_(block.conv2.weight)
    assert not block(torch.rand(1, 32, 4, 4)).any()
    same = OutputShortcutBlock(32, 32)
    torch.nn.init.zeros_(same.conv2.weight)
    x = torch.rand(1, 32, 4, 4)
    assert torch.equal(same(x), x)


def test_gradients_reach_every_parameter() -> None:
    vqgan = tokenizer().train()
    latents = vqgan.encode(torch.rand(2, 3, 8, 8))
    (vqgan.decode(latents).square().mean() + sum(latents.loss.values())).backward()
    assert not [name for name, parameter in vqgan.named_parameters() if parameter.grad is None]


def test_sizes_it_cannot_halve_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 2x2, such as 4x6"):
        tokenizer().encode(torch.rand(1, 3, 5, 6))


def test_saved_and_loaded_in_bfloat16(tmp_path) -> None:
    vqgan = tokenizer().eval()
    vqgan.save_pretrained(tmp_path / "vqgan")
    again = Block.from_pretrained(tmp_path / "vqgan", dtype=torch.bfloat16)
    pixels = torch.rand(1, 3, 4, 4)
    latents = again.encode(pixels.bfloat16())
    assert latents.z.dtype == torch.bfloat16 and again.config == vqgan.config
    torch.testing.assert_close(again.features(pixels.bfloat16()).float(), vqgan.features(pixels), atol=0.1, rtol=0.1)
