from functools import partial

import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vitamin import GeGluMlp, MbConvStages, VitCfg, VitConvCfg

from mmblocks import Block
from mmblocks.tokenizers.towers.unitok import UniTok
from mmblocks.tokenizers.towers.vitamin import ViTaminEncoder


def tokenizer(**options) -> UniTok:
    torch.manual_seed(0)
    return UniTok(
        num_codebooks=2, num_codes=20, code_dim=4, dim=32, widths=(8, 16), depths=(1, 2), decoder_depths=(2, 1),
        num_layers=1, num_heads=2, text_dim=12, **options,
    )  # fmt: skip


@pytest.mark.parametrize("size", [(16, 16), (32, 48)])
def test_codes_decode_to_what_the_latents_decode_to(size) -> None:
    vq = tokenizer().eval()
    pixels = torch.rand(1, 3, *size)
    latents = vq.encode(pixels)
    assert latents.ids.shape == (1, size[0] // 16, size[1] // 16, 2)
    decoded = vq.decode(latents)
    assert decoded.shape == pixels.shape
    torch.testing.assert_close(vq.decode(latents.ids), decoded, atol=1e-5, rtol=1e-5)
    assert vq.embedding(latents).shape == (1, 12)


def test_gradients_reach_every_parameter() -> None:
    vq = tokenizer(entropy_temperature=0.1).train()
    latents = vq.encode(torch.rand(2, 3, 32, 32))
    (vq.decode(latents).square().mean() + vq.embedding(latents).square().mean() + sum(latents.loss.values())).backward()
    assert [name for name, parameter in vq.named_parameters() if parameter.grad is None or not parameter.grad.abs().sum()] == []


def test_convolutions_and_layers_are_those_of_timm() -> None:
    torch.manual_seed(0)
    shape = VitCfg(
        embed_dim=(8, 16, 32), depths=(2, 2, 1), stem_width=8, conv_cfg=VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6)
    )
    convolutions = MbConvStages(cfg=shape).eval()
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    layer = TimmBlock(32, 2, mlp_ratio=2.0, qkv_bias=True, act_layer="gelu_tanh", mlp_layer=GeGluMlp, norm_layer=norm)
    theirs = {f"encoder.patch_embed.backbone.{name}": value for name, value in convolutions.state_dict().items()}
    theirs |= {f"encoder.blocks.0.{name}": value for name, value in layer.state_dict().items()}

    ours = ViTaminEncoder(dim=32, widths=(8, 16), depths=(2, 2), num_layers=1, num_heads=2, code_dim=None).eval()
    (layout,) = UniTok.layouts
    converted = {name.removeprefix("encoder."): value for name, value in layout.convert(theirs, {})}
    assert set(ours.state_dict()) - set(converted) == {"norm.weight", "norm.bias"}
    ours.load_state_dict(converted, strict=False)
    pixels = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        tokens = layer.eval()(convolutions(pixels).flatten(2).transpose(1, 2))
        torch.testing.assert_close(ours(pixels).flatten(1, 2), ours.norm(tokens), atol=1e-5, rtol=1e-5)


def test_saved_loaded_and_in_bfloat16(tmp_path) -> None:
    vq = tokenizer().eval()
    vq.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    pixels = torch.rand(1, 3, 16, 32)
    assert torch.equal(again.decode(again.encode(pixels)), vq.decode(vq.encode(pixels)))
    half = vq.bfloat16()
    assert half.decode(half.encode(pixels.bfloat16()).ids).dtype == torch.bfloat16


def test_what_does_not_fit_is_refused() -> None:
    vq = tokenizer()
    with pytest.raises(ValueError, match="multiples of 16x16, such as 16x32"):
        vq.encode(torch.zeros(1, 3, 20, 32))
    with pytest.raises(ValueError, match=r"3 codes a token .*; accepted: 2"):
        vq.decode(torch.zeros(1, 2, 2, 3, dtype=torch.long))
    (layout,) = UniTok.layouts
    with pytest.raises(ValueError, match="quant_proj is 'linear'"):
        layout.arguments({"quant_proj": "linear"})


def test_preprocess_gives_what_encode_takes() -> None:
    assert tokenizer(image_size=32).preprocess(Image.new("RGB", (70, 50))).shape == (3, 32, 32)
