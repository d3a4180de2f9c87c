"""VAR: teacher forcing and sampling agree; its tokenizer around it."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mmblocks.layers.categorical import Sampling
from mmblocks.models.var.model import VARImageModel
from mmblocks.models.var.transformer import VAR
from mmblocks.tokenizers.var.tokenizer import VARVQ

SCALES = (1, (2, 1), (4, 2))


def tiny(**options) -> VAR:
    torch.manual_seed(0)
    sizes = {"num_codes": 10, "code_dim": 4, "num_classes": 5, "dim": 16, "num_layers": 2, "num_heads": 2, "mlp_ratio": 2.0}
    model = VAR(**{**sizes, "scales": SCALES, **options})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def image_model(**options) -> VARImageModel:
    trunk = tiny(**options)
    sizes = {"channels": 32, "multipliers": (1, 1), "num_blocks": 1}
    tokenizer = VARVQ(num_codes=10, code_dim=4, scales=SCALES, num_blends=2, **sizes)
    return VARImageModel(tokenizer=tokenizer, trunk=trunk).eval()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("l2_norm", [False, True])
def test_the_cached_logits_are_those_of_teacher_forcing(shared, l2_norm) -> None:
    model = image_model(shared_modulation=shared, l2_norm=l2_norm)
    labels, codes, logits = torch.tensor([1, 4]), model.tokenizer.bottleneck, []
    made = model.trunk.sample(labels, codes, guidance=0.0, logits=logits, generator=torch.Generator().manual_seed(0))
    whole = model.trunk(labels, codes.next_scale_inputs(made.ids))
    torch.testing.assert_close(torch.cat(logits, dim=1), whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made.z, codes.lookup(made.ids), atol=1e-5, rtol=1e-5)


def test_guidance_grows_with_the_scale() -> None:
    model, labels = image_model(), torch.tensor([2])
    ids = torch.randint(10, (1, 11), generator=torch.Generator().manual_seed(1))
    found = {}
    for name, label, guidance in (("c", 2, 0.0), ("u", 5, 0.0), ("guided", 2, 3.0)):
        found[name] = []
        options = {"guidance": guidance, "ids": ids, "logits": found[name]}
        model.trunk.sample(torch.full_like(labels, label), model.tokenizer.bottleneck, **options)
    for c, u, guided, strength in zip(*found.values(), (0.0, 1.5, 3.0), strict=True):
        torch.testing.assert_close(guided, (1 + strength) * c - strength * u, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("smooth", [False, True])
def test_images_of_classes(smooth) -> None:
    model = image_model()
    counts = [rows * columns for rows, columns in model.trunk.scales]

    def draw() -> torch.Tensor:
        draws = torch.Generator().manual_seed(3)
        noise = [[torch.rand(2, count, 10, generator=draws) for count in counts] for _ in range(2)]
        options = {"sampling": Sampling(top_k=4, top_p=0.9), "gumbel": noise[0], "smoothing_gumbel": noise[1]}
        return model.generate(torch.tensor([0, 3]), smooth=smooth, **options)

    pixels = draw()
    assert pixels.shape == (2, 3, 8, 4) and pixels.min() >= 0 and pixels.max() <= 1
    assert torch.equal(pixels, draw())


def test_the_loss_reaches_the_trunk_alone() -> None:
    model, pixels = image_model().train(), torch.rand(3, 3, 8, 4)
    losses = model.loss(pixels, torch.tensor([0, 1, 2]), drop=torch.tensor([True, False, False]))
    assert losses.shape == (3, 11)
    losses.mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.trunk.parameters())
    assert all(parameter.grad is None for parameter in model.tokenizer.parameters())
    assert model.trunk.tokens.classes.weight.grad.any(dim=1).tolist() == [False, True, True, False, False, True]


def test_bf16_and_saving(tmp_path) -> None:
    model, labels = image_model(), torch.tensor([1, 2])
    made = model.generate(labels, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path)
    again = VARImageModel.from_pretrained(tmp_path)
    assert torch.equal(again.generate(labels, generator=torch.Generator().manual_seed(0)), made)
    inputs = torch.randn(2, 10, 4)
    wanted = model.trunk(labels, inputs)
    torch.testing.assert_close(model.trunk.bfloat16()(labels, inputs.bfloat16()), wanted, atol=0.3, rtol=0.1)
    assert model.bfloat16().generate(labels).isfinite().all()


LABEL = torch.tensor([1])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tiny(dim=15), "dim is 15, num_heads 2"),
        (lambda: tiny(scales=()), "accepted: heads that divide dim, and a scale"),
        (lambda: tiny()(torch.tensor([0]), torch.zeros(1, 9, 4)), r"inputs is \(1, 9, 4\); accepted: \(B, 10, 4\)"),
        (lambda: tiny()(torch.tensor([6]), torch.zeros(1, 10, 4)), r"labels lie in \[6, 6\]; accepted: \[0, 5\]"),
        (lambda: tiny().loss(LABEL, torch.zeros(1, 10, 4), torch.full((1, 11), 10)), r"ids lie in \[10, 10\]; accepted: \[0, 9\]"),
        (lambda: tiny().loss(LABEL, torch.zeros(1, 10, 4), torch.zeros(1, 9).long()), r"ids is \(1, 9\); accepted: \(1, 11\)"),
        (lambda: image_model().generate(torch.tensor([1]), guidance=-0.5), "guidance is -0.5; accepted: 0 or more"),
        (lambda: image_model().generate(torch.tensor([1]), gumbel=[torch.zeros(1, 1, 10)]), "gumbel has 1 scales; accepted: 3"),
        (
            lambda: VARImageModel(tokenizer=image_model().tokenizer, trunk=tiny(num_codes=11)),
            "accepted: the tokenizer's",
        ),
    ],
)
def test_what_does_not_fit_is_refused(build, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def published(folder, model: VAR, **tables: torch.Tensor):
    """A folder as the official code would have written it, with its tables."""
    levels = torch.arange(3).repeat_interleave(torch.tensor([1, 4, 9]))
    mask = torch.where(levels[:, None] >= levels, 0.0, -torch.inf)[None, None]
    own = {"lvl_1L": levels[None], "attn_bias_for_masking": mask, "blocks.0.attn.zero_k_bias": torch.zeros(16)}
    (layout,) = VAR.layouts
    tensors = dict(layout.convert(model.state_dict(), model.config, to="theirs"))
    save_file({**tensors, **own, **tables}, folder / "model.safetensors")
    config = {"depth": 2, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 2.0, "patch_nums": [1, 2, 3], "attn_l2_norm": True}
    codes = {"vocab_size": 10, "z_channels": 4}
    (folder / "config.json").write_text(json.dumps({**config, "num_classes": 5, "vae_kwargs": codes, "flash_if_available": True}))
    return folder


def test_the_tables_of_a_file_are_compared(tmp_path) -> None:
    model = tiny(scales=(1, 2, 3))
    mask = torch.where(torch.arange(14)[:, None] >= torch.arange(14), 0.0, -torch.inf)[None, None]
    again = VAR.from_pretrained(published(tmp_path, model))
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    VAR.from_pretrained(published(tmp_path, model, **{"blocks.1.attn.zero_k_bias": torch.zeros(16).half()}))
    for name, table, message in (
        ("lvl_1L", torch.zeros(1, 14, dtype=torch.long), "lvl_1L differs by up to 2"),
        ("lvl_1L", torch.zeros(1, 15, dtype=torch.long), r"the table has shape \(1, 15\); accepted: \(1, 14\)"),
        ("attn_bias_for_masking", mask, "attn_bias_for_masking differs by up to 1"),
        ("attn_bias_for_masking", torch.zeros(1, 1, 14, 14), "attn_bias_for_masking differs by up to 1"),
        ("blocks.1.attn.zero_k_bias", torch.ones(16), "zero_k_bias differs by up to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            VAR.from_pretrained(published(tmp_path, model, **{name: table}))
