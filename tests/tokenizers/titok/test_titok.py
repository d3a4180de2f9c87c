import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from mmblocks import Block
from mmblocks.tokenizers.titok.first_stage import FirstStageTiTok
from mmblocks.tokenizers.titok.maskgit_vqgan import MaskGITVQGAN
from mmblocks.tokenizers.titok.tokenizer import OneStageTiTok, TATiTok, TiTok

SIZES = {
    "image_size": 16,
    "num_tokens": 5,
    "code_dim": 6,
    "patch_size": 8,
    "decoder_patch_size": 4,
    "encoder_size": (32, 1, 4),
    "decoder_size": (24, 2, 3),
}
PIXELS = {"num_pixel_codes": 9, "pixel_code_dim": 8, "pixel_channels": 32, "pixel_multipliers": (1, 2, 1), "pixel_blocks": 1}
TEXT = {"text_dim": 7, "text_length": 3}
MAKERS = {
    "two stages": lambda: TiTok(**SIZES, **PIXELS, num_codes=20),
    "codes": lambda: OneStageTiTok(**SIZES, num_codes=20),
    "gaussian": lambda: OneStageTiTok(**SIZES, num_codes=None),
    "text": lambda: TATiTok(**SIZES, **TEXT, num_codes=20, clustering=True),
    "text and gaussian": lambda: TATiTok(**SIZES, **TEXT, num_codes=None),
}


@pytest.fixture(params=MAKERS)
def tokenizer(request):
    torch.manual_seed(0)
    return MAKERS[request.param]().eval()


def guide(tokenizer, batch: int) -> dict[str, torch.Tensor]:
    return {"text": torch.ones(batch, 3, 7)} if isinstance(tokenizer, TATiTok) else {}


@pytest.mark.parametrize("batch", [1, 3])
def test_an_image_is_a_row_of_tokens(tokenizer, batch) -> None:
    pixels = torch.rand(batch, 3, 16, 16)
    latents = tokenizer.encode(pixels)
    assert latents.z.shape == (batch, 5, 6) and latents.loss is None
    rebuilt = tokenizer.decode(latents, **guide(tokenizer, batch))
    assert rebuilt.shape == pixels.shape and rebuilt.min() >= 0 and rebuilt.max() <= 1
    if tokenizer.codebook_sizes:
        assert tokenizer.codebook_sizes == (20,) and latents.ids.shape == (batch, 5)
        torch.testing.assert_close(tokenizer.decode(latents.ids, **guide(tokenizer, batch)), rebuilt)
    else:
        with pytest.raises(ValueError, match="Gaussian has no codes"):
            tokenizer.decode(torch.zeros(batch, 5, dtype=torch.long), **guide(tokenizer, batch))


def test_gradients_reach_every_parameter(tokenizer) -> None:
    latents = tokenizer.train().encode(torch.rand(2, 3, 16, 16))
    assert set(latents.loss) == ({"codebook", "commitment"} if tokenizer.codebook_sizes else {"kl"})
    assert set(latents.loss) <= set(tokenizer.loss_weights)
    decoded = tokenizer.decode(latents, **guide(tokenizer, 2))
    (decoded.square().mean() + sum(latents.loss.values())).backward()
    without = [name for name, parameter in tokenizer.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not without


def first_stage() -> FirstStageTiTok:
    torch.manual_seed(0)
    return FirstStageTiTok(**SIZES, num_codes=20, num_pixel_codes=9)


def teacher() -> MaskGITVQGAN:
    return MaskGITVQGAN(num_codes=9, code_dim=8, channels=32, multipliers=(1, 2, 1), num_blocks=1).eval()


def test_the_first_stage_learns_codes_of_another_tokenizer() -> None:
    tokenizer = TiTok(**SIZES, **PIXELS, num_codes=20).train()
    pixels = torch.rand(2, 3, 16, 16)
    logits = tokenizer.decoder.logits(tokenizer.encode(pixels).z)
    cross_entropy(logits.flatten(0, 2), teacher().encode(pixels).ids.flatten()).backward()
    assert tokenizer.encoder.tokens.grad.any() and tokenizer.decoder.pixel_decoder.conv_in.weight.grad is None


def test_the_first_stage_alone() -> None:
    first, pixels = first_stage(), torch.rand(2, 3, 16, 16)
    wanted = teacher().encode(pixels).ids
    losses = first.training_losses(first.encode(pixels), wanted)
    assert set(losses) == set(first.loss_weights)
    torch.testing.assert_close(losses["pixel_codes"], cross_entropy(first.decode(first.encode(pixels)).movedim(-1, 1), wanted))
    sum(losses.values()).backward()
    assert not [name for name, parameter in first.named_parameters() if parameter.grad is None or not parameter.grad.any()]

    latents = first.eval().encode(pixels)
    told = first.pixel_codes(latents.ids)
    assert torch.equal(told, first.decode(latents).argmax(-1)) and teacher().decode(told).shape == pixels.shape
    with pytest.raises(ValueError, match="latents hold no losses"):
        first.training_losses(latents, wanted)
    with pytest.raises(ValueError, match=r"pixel_codes have shape \(2, 2, 4\); accepted: \(2, 4, 4\)"):
        first.training_losses(first.train().encode(pixels), wanted[:, :2])


def test_the_second_stage_goes_on_from_the_first() -> None:
    first, second = first_stage().eval(), TiTok(**SIZES, **PIXELS, num_codes=20).eval()
    missing, unexpected = second.load_state_dict(first.state_dict(), strict=False)
    assert not unexpected and all(name.startswith(("decoder.codebook", "decoder.pixel_decoder")) for name in missing)
    latents = first.encode(torch.rand(1, 3, 16, 16))
    assert torch.equal(second.decoder.logits(latents.z), first.decode(latents))


CONFIG = {
    "codebook_size": 20,
    "token_size": 6,
    "use_l2_norm": True,
    "num_latent_tokens": 5,
    "vit_enc_model_size": "base",
    "vit_dec_model_size": "base",
    "vit_enc_patch_size": 8,
    "vit_dec_patch_size": 4,
}


@pytest.mark.parametrize(
    ("cls", "flags"),
    [
        (TiTok, {}),
        (FirstStageTiTok, {"finetune_decoder": False}),
        (OneStageTiTok, {"finetune_decoder": False, "is_legacy": False}),
    ],
)
def test_which_class_reads_a_config(cls, flags) -> None:
    for other in (TiTok, FirstStageTiTok, OneStageTiTok):
        (layout,) = other.layouts
        if other is cls:
            assert layout.arguments({"model": {"vq_model": CONFIG | flags}})["num_tokens"] == 5
        else:
            with pytest.raises(ValueError, match=rf"accepted: is_legacy=.*\({cls.__name__} reads this one\)"):
                layout.arguments({"model": {"vq_model": CONFIG | flags}})


def test_a_checkpoint_of_the_first_stage_is_read(tmp_path) -> None:
    first = first_stage().eval()
    first.to_upstream(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {"decoder.ffn.2.weight", "quantize.embedding.weight"} <= names and not any(name.startswith("pixel") for name in names)
    (tmp_path / "config.json").write_text(json.dumps({"model": {"vq_model": CONFIG | {"finetune_decoder": False}}}))
    again = FirstStageTiTok.from_pretrained(
        tmp_path, image_size=16, encoder_size=SIZES["encoder_size"], decoder_size=SIZES["decoder_size"], num_pixel_codes=9
    )
    pixels = torch.rand(1, 3, 16, 16)
    assert torch.equal(again.decode(again.encode(pixels)), first.decode(first.encode(pixels)))


def test_a_gaussian_draws_what_it_is_told_to() -> None:
    tokenizer = MAKERS["gaussian"]().eval()
    pixels = torch.rand(1, 3, 16, 16)
    first, again = (tokenizer.encode(pixels, generator=torch.Generator().manual_seed(0)).z for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, tokenizer.encode(pixels).z)
    assert torch.equal(tokenizer.encode(pixels, noise=torch.zeros_like(first)).z, tokenizer.encode(pixels, sample=False).z)


def test_text_changes_the_image() -> None:
    tokenizer = MAKERS["text"]().eval()
    z = torch.randn(1, 5, 6)
    assert not torch.equal(tokenizer.decoder(z, torch.zeros(1, 3, 7)), tokenizer.decoder(z, torch.ones(1, 3, 7)))
    ids = torch.zeros(1, 5, dtype=torch.long)
    for text, message in ((None, "text is missing"), (torch.ones(1, 4, 7), r"text has shape \(1, 4, 7\); accepted: \(B, 3, 7\)")):
        with pytest.raises(ValueError, match=message):
            tokenizer.decode(ids, text)
    with pytest.raises(ValueError, match="text is given"):
        MAKERS["codes"]().decoder(z, torch.ones(1, 3, 7))


@pytest.mark.parametrize("size", [(16, 24), (8, 8), (17, 16)])
def test_other_sizes_are_refused(size) -> None:
    with pytest.raises(ValueError, match="accepted: 16x16"):
        MAKERS["codes"]().encode(torch.rand(1, 3, *size))


def test_what_does_not_fit_is_refused() -> None:
    tokenizer = MAKERS["codes"]()
    with pytest.raises(ValueError, match=r"accepted: \(B, 5, 6\)"):
        tokenizer.decode(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"accepted: \[0, 19\]"):
        tokenizer.decode(torch.full((1, 5), 20))
    with pytest.raises(ValueError, match="nan"):
        tokenizer.encode(torch.full((1, 3, 16, 16), torch.nan))
    with pytest.raises(ValueError, match="multiples of the patch size 8, such as 16"):
        OneStageTiTok(**{**SIZES, "image_size": 18})


@pytest.mark.unchecked
def test_bytes_are_refused() -> None:
    with pytest.raises(TypeError, match="uint8"):
        MAKERS["codes"]().encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_saved_and_loaded(tokenizer, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = Block.from_pretrained(tmp_path / "tokenizer")
    z = torch.randn(1, 5, 6)
    assert again.config == tokenizer.config
    assert torch.equal(again.decoder(z, *guide(again, 1).values()), tokenizer.decoder(z, *guide(again, 1).values()))


def test_bfloat16(tokenizer) -> None:
    tokenizer.bfloat16()
    latents = tokenizer.encode(torch.rand(1, 3, 16, 16).bfloat16())
    texts = {name: text.bfloat16() for name, text in guide(tokenizer, 1).items()}
    assert latents.z.dtype == torch.bfloat16 and tokenizer.decode(latents, **texts).isfinite().all()


def test_photographs_become_squares() -> None:
    tokenizer = MAKERS["codes"]().eval()
    pixels = tokenizer.preprocess(Image.new("L", (50, 31), 255))
    assert pixels.shape == (3, 16, 16) and pixels.min() == 1
    assert tokenizer.encode(pixels[None]).ids.shape == (1, 5)
