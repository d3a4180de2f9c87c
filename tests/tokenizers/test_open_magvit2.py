import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mmblocks import Block
from mmblocks.tokenizers.open_magvit2.tokenizer import OpenMAGVIT2

TINY = {"bits": (6,), "channels": 32, "multipliers": (1, 2), "num_blocks": 1}


def tokenizer(**arguments) -> OpenMAGVIT2:
    torch.manual_seed(0)
    return OpenMAGVIT2(**(TINY | arguments))


def pixels(*size: int) -> torch.Tensor:
    return torch.rand(size[0], 3, *size[1:], generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(1, 8, 8), (2, 6, 10)])
@pytest.mark.parametrize("bits", [(6,), (2, 4)])
def test_codes_decode_to_what_the_latents_decode_to(size, bits) -> None:
    tokens = tokenizer(bits=bits).eval()
    latents = tokens.encode(pixels(*size))
    grid = (size[0], size[1] // 2, size[2] // 2)
    assert latents.ids.shape == (grid if len(bits) == 1 else (*grid, 2)) and latents.loss is None
    assert tokens.codebook_sizes == tuple(2**number for number in bits)
    decoded = tokens.decode(latents.ids)
    assert decoded.shape == (size[0], 3, *size[1:]) and decoded.min() >= 0 and decoded.max() <= 1
    assert torch.equal(decoded, tokens.decode(latents))


def test_gradients_reach_every_parameter() -> None:
    tokens = tokenizer().train()
    latents = tokens.encode(pixels(2, 8, 8))
    loss = tokens.decode(latents).square().mean() + sum(tokens.loss_weights[name] * value for name, value in latents.loss.items())
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in tokens.parameters())


def test_bfloat16_decodes_ids_too() -> None:
    tokens = tokenizer().bfloat16().eval()
    latents = tokens.encode(pixels(1, 8, 8).bfloat16())
    assert tokens.decode(latents.ids).dtype == torch.bfloat16


def test_a_training_checkpoint_is_read_with_its_averaged_weights(tmp_path) -> None:
    tokens = tokenizer()
    layout = tokens.layouts[0]
    plain = dict(layout.convert(tokens.state_dict(), tokens.config, to="theirs"))
    averaged = {"model_ema." + name.replace(".", ""): value + 1 for name, value in plain.items()}
    names = ("loss.discriminator.weight", "model_ema.lossdiscriminatorweight", "model_ema.decay", "model_ema.num_updates")
    save_file({**plain, **averaged, **{name: torch.zeros(3) for name in names}}, tmp_path / "both.safetensors")
    save_file({**plain, "loss.discriminator.weight": torch.zeros(3)}, tmp_path / "plain.safetensors")
    both = OpenMAGVIT2.from_pretrained(tmp_path / "both.safetensors", **TINY)
    alone = OpenMAGVIT2.from_pretrained(tmp_path / "plain.safetensors", **TINY)
    for name, value in tokens.state_dict().items():
        assert torch.equal(alone.state_dict()[name], value) and torch.equal(both.state_dict()[name], value + 1)


def test_saved_and_loaded(tmp_path) -> None:
    tokens = tokenizer(bits=(2, 4)).eval()
    tokens.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    assert again.config == tokens.config
    assert torch.equal(again.encode(pixels(1, 8, 8)).ids, tokens.encode(pixels(1, 8, 8)).ids)


def test_an_image_is_cropped_to_a_size_that_is_accepted() -> None:
    tokens = tokenizer()
    cropped = tokens.preprocess(Image.new("RGB", (9, 7)))
    assert cropped.shape == (3, 6, 8)
    assert tokens.encode(cropped[None]).ids.shape[1:3] == (3, 4)


@pytest.mark.unchecked
def test_bad_input_is_refused() -> None:
    tokens = tokenizer()
    with pytest.raises(ValueError, match="accepted: multiples of 2x2"):
        tokens.encode(pixels(1, 7, 8))
    with pytest.raises(TypeError, match="uint8"):
        tokens.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="nan"):
        tokens.encode(torch.full((1, 3, 8, 8), torch.nan))
    with pytest.raises(ValueError, match=r"accepted: \[0, 63\]"):
        tokens.decode(torch.tensor([[[0, 64]]]))
    with pytest.raises(ValueError, match="two places or more"):
        tokens.decode(torch.tensor([[[5]]]))


def test_configs_of_other_models_are_refused() -> None:
    ddconfig = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "z_channels": 6}
    arguments = OpenMAGVIT2.layouts[0].arguments
    assert arguments({"ddconfig": ddconfig, "n_embed": 64, "token_factorization": True, "factorized_bits": [2, 4]})["bits"] == (
        2,
        4,
    )
    with pytest.raises(ValueError, match="2 to the power of z_channels, 6"):
        arguments({"ddconfig": ddconfig, "n_embed": 1024})
    with pytest.raises(ValueError, match="double_z"):
        arguments({"ddconfig": {**ddconfig, "double_z": True}, "n_embed": 64})
