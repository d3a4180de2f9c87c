import pytest
import torch
from PIL import Image

from mmblocks import Block
from mmblocks.tokenizers.var.tokenizer import VARVQ


def tokenizer() -> VARVQ:
    torch.manual_seed(0)
    return VARVQ(channels=32, multipliers=(1, 2), num_blocks=1, num_codes=30, code_dim=8, scales=(1, 2, 4))


@pytest.mark.parametrize(("scales", "size"), [(None, (8, 8)), (((1, 1), (2, 2), (3, 5)), (6, 10))])
def test_codes_decode_to_what_the_latents_decode_to(scales, size) -> None:
    vq = tokenizer().eval()
    pixels = torch.rand(1, 3, *size)
    latents = vq.encode(pixels, scales=scales)
    decoded = vq.decode(latents)
    assert decoded.shape == pixels.shape and decoded.min() >= 0 and decoded.max() <= 1
    torch.testing.assert_close(vq.decode(latents.ids, scales=scales), decoded)
    stages = vq.stages(latents.ids, scales=scales)
    assert len(stages) == 3
    torch.testing.assert_close(stages[-1], decoded)


def test_gradients_reach_every_parameter_that_is_used() -> None:
    vq = tokenizer().train()
    pixels = torch.rand(2, 3, 8, 8)
    latents = vq.encode(pixels)
    loss = (vq.decode(latents) - pixels).square().mean() + sum(vq.loss_weights[name] * loss for name, loss in latents.loss.items())
    loss.backward()
    used = {name for name, parameter in vq.named_parameters() if parameter.grad is not None and parameter.grad.abs().sum() > 0}
    left_out = {name for name, _ in vq.named_parameters()} - used
    assert all(name.startswith("bottleneck.blends") or name.endswith("key.bias") for name in left_out)  # 3 scales, 4 blends


def test_saved_loaded_and_in_bfloat16(tmp_path) -> None:
    vq = tokenizer().eval()
    vq.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    pixels = torch.rand(1, 3, 8, 8)
    assert torch.equal(again.decode(again.encode(pixels)), vq.decode(vq.encode(pixels)))
    half = vq.bfloat16()
    assert half.decode(half.encode(pixels.bfloat16()).ids).dtype == torch.bfloat16


def test_what_does_not_fit_is_refused() -> None:
    vq = tokenizer()
    with pytest.raises(ValueError, match="the map is 2x4; accepted: 4x4, the last of scales, or give others"):
        vq.encode(torch.zeros(1, 3, 4, 8))
    with pytest.raises(ValueError, match="multiples of 2x2, such as 8x8"):
        vq.encode(torch.zeros(1, 3, 8, 7))
    with pytest.raises(ValueError, match=r"accepted: \[0, 1\]"):
        vq.encode(torch.full((1, 3, 8, 8), 2.0))
    with pytest.raises(ValueError, match="there are 20 ids; accepted: 21"):
        vq.decode(torch.zeros(1, 20, dtype=torch.long))


def test_preprocess_gives_what_encode_takes() -> None:
    assert tokenizer().preprocess(Image.new("RGB", (33, 20))).shape == (3, 8, 8)
