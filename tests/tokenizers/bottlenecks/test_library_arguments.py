"""Every argument of vector-quantize-pytorch's constructors is followed, refused where it is not, or known to change nothing."""

import inspect
from typing import Any

import pytest
import torch
import vector_quantize_pytorch as library  # type: ignore[import-untyped]
from safetensors.torch import save_file

from mmblocks import Block
from mmblocks.checkpoints.layouts.harmless import is_harmless
from mmblocks.tokenizers.bottlenecks.ema import EMAVectorQuantizer
from mmblocks.tokenizers.bottlenecks.finite_scalar import FiniteScalarQuantizer
from mmblocks.tokenizers.bottlenecks.lookup_free import LookupFreeQuantizer
from mmblocks.tokenizers.bottlenecks.multi_head import MultiHeadVectorQuantizer
from mmblocks.tokenizers.bottlenecks.residual.finite_scalar import ResidualFiniteScalarQuantizer
from mmblocks.tokenizers.bottlenecks.residual.lookup_free import ResidualLookupFreeQuantizer
from mmblocks.tokenizers.bottlenecks.residual.quantizer import ResidualQuantizer
from mmblocks.tokenizers.bottlenecks.sim_vq import SimVQ

VQ: dict[str, Any] = {"dim": 4, "codebook_size": 8}
RESIDUAL = {**VQ, "num_quantizers": 2}
LEVELS: dict[str, Any] = {"levels": [5, 3], "num_quantizers": 2, "dim": 2}
LAYOUTS: list[tuple[type[Block], int, tuple[str, ...], dict[str, Any]]] = [
    (EMAVectorQuantizer, 0, ("VectorQuantize",), VQ),
    (MultiHeadVectorQuantizer, 0, ("VectorQuantize",), VQ),
    (ResidualQuantizer, 1, ("GroupedResidualVQ", "ResidualVQ", "VectorQuantize"), RESIDUAL),
    (ResidualQuantizer, 0, ("ResidualVQ", "VectorQuantize"), RESIDUAL),
    (FiniteScalarQuantizer, 0, ("FSQ",), {"levels": [5, 3]}),
    (ResidualFiniteScalarQuantizer, 1, ("GroupedResidualFSQ", "ResidualFSQ", "FSQ"), LEVELS),
    (ResidualFiniteScalarQuantizer, 0, ("ResidualFSQ", "FSQ"), LEVELS),
    (LookupFreeQuantizer, 0, ("LFQ",), {"dim": 3, "codebook_size": 8}),
    (ResidualLookupFreeQuantizer, 1, ("GroupedResidualLFQ", "ResidualLFQ", "LFQ"), {**RESIDUAL, "dim": 3}),
    (ResidualLookupFreeQuantizer, 0, ("ResidualLFQ", "LFQ"), {**RESIDUAL, "dim": 3}),
    (SimVQ, 0, ("SimVQ",), VQ),
]


SET_INSIDE = ("codebook_scale", "preserve_symmetry")
"""What the residual classes give their quantizers themselves: handed in, it is an error there too."""


def defaults(names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the first of the classes that has the argument: it hands the others on."""
    found: dict[str, Any] = {}
    for name in names:
        for parameter in inspect.signature(getattr(library, name)).parameters.values():
            if parameter.kind is not parameter.VAR_KEYWORD and parameter.default is not parameter.empty:
                found.setdefault(parameter.name, parameter.default)
    return found


def others(value: Any) -> list[Any]:
    match value:
        case bool():
            return [not value]
        case int() | float():
            return [value + 1, value / 2]
        case _:
            return [2, True, False, 0.5, "another"]


@pytest.mark.parametrize(("cls", "number", "names", "base"), LAYOUTS)
def test_every_argument_is_decided(cls: type[Block], number: int, names: tuple[str, ...], base: dict[str, Any]) -> None:
    layout = cls.layouts[number]
    arguments = layout.arguments(base)
    cls(**arguments)
    silent, refused = [], []
    for name, default in defaults(names).items():
        if name in base or is_harmless(name, default, layout.harmless):
            continue
        results = []
        for value in others(default):
            try:
                results.append(layout.arguments({**base, name: value}) == arguments)
            except (ValueError, TypeError):
                results.append(False)
        if all(results):
            silent.append(name)
        if isinstance(default, bool | int | float | None) and not (len(names) > 1 and name in SET_INSIDE):
            try:
                cls(**layout.arguments({**base, name: default}))
            except ValueError:
                refused.append(name)
    assert not silent
    assert not refused


@pytest.mark.parametrize(("cls", "number", "names", "base"), LAYOUTS)
def test_arguments_of_tomorrow_are_refused(cls: type[Block], number: int, names: tuple[str, ...], base: dict[str, Any]) -> None:
    for name in ("an_argument_of_tomorrow", "vq_bridge", "codebook_transform", "straight_through_activation"):
        with pytest.raises(ValueError, match=name):
            cls.layouts[number].arguments({**base, name: 1})


@pytest.mark.parametrize(
    ("cls", "number", "config", "message"),
    [
        (EMAVectorQuantizer, 0, {**RESIDUAL}, "num_quantizers"),
        (SimVQ, 0, {**RESIDUAL}, "num_quantizers"),
        (FiniteScalarQuantizer, 0, LEVELS, "num_quantizers"),
        (LookupFreeQuantizer, 0, RESIDUAL, "num_quantizers"),
        (ResidualQuantizer, 0, {**RESIDUAL, "groups": 2}, "groups is 2; accepted: 1"),
        (ResidualFiniteScalarQuantizer, 0, {**LEVELS, "groups": 2}, "groups is 2; accepted: 1"),
        (ResidualLookupFreeQuantizer, 0, {**RESIDUAL, "groups": 2}, "groups is 2; accepted: 1"),
        (LookupFreeQuantizer, 0, {"dim": 3, "codebook_size": 12}, "codebook_size is 12; accepted: powers of two"),
        (
            LookupFreeQuantizer,
            0,
            {"dim": 3, "has_projections": True},
            "has_projections is True; accepted: False",
        ),
        (ResidualQuantizer, 1, {**RESIDUAL, "orthogonal_reg_weight": 1.0, "commitment_weight": 0.5}, "commitment_weight is 0.5"),
        (ResidualQuantizer, 1, {**RESIDUAL, "diveq": True}, "diveq is True; accepted: False"),
        (ResidualQuantizer, 1, {**RESIDUAL, "channel_last": False}, "channel_last is False; accepted: True"),
    ],
)
def test_configs_of_other_classes_are_refused(cls: type[Block], number: int, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls.layouts[number].arguments(config)


@pytest.mark.parametrize("grouped", [False, True])
def test_codebooks_of_different_sizes(grouped: bool) -> None:
    config: dict[str, Any] = {"dim": 8, "codebook_size": (8, 5, 3), **({"groups": 2} if grouped else {})}
    theirs = getattr(library, "GroupedResidualVQ" if grouped else "ResidualVQ")(**config).eval()
    layout = ResidualQuantizer.layouts[1 if grouped else 0]
    ours = ResidualQuantizer(**layout.arguments({**config, "codebook_size": [8, 5, 3]})).eval()
    ours.load_state_dict(dict(layout.convert(theirs.state_dict(), ours.config)))
    x = torch.randn(2, 30, 8)

    latents, (z, ids, _) = ours(x), theirs(x)

    assert ours.codebook_sizes == (8, 5, 3) * (1 + grouped)
    torch.testing.assert_close(latents.z, z)
    assert torch.equal(latents.ids, torch.cat([*ids], dim=-1) if grouped else ids)
    torch.testing.assert_close(ours.lookup(latents.ids), z)
    with pytest.raises(ValueError, match=r"accepted: \[0, 2\]"):
        ours.lookup(torch.full((1, 1, 3 + 3 * grouped), 3))
    with pytest.raises(ValueError, match="one number, or 3 numbers"):
        ResidualQuantizer(dim=8, num_codes=(8, 5), num_quantizers=3)


def test_the_temperature_is_read() -> None:
    for cls, base in ((LookupFreeQuantizer, {"dim": 3}), (ResidualLookupFreeQuantizer, {**RESIDUAL, "dim": 3})):
        assert cls.layouts[0].arguments({**base, "inv_temperature": 10.0})["temperature"] == 0.1


@pytest.mark.parametrize("residual", [False, True])
def test_values_of_bits_are_compared(tmp_path: Any, residual: bool) -> None:
    config: dict[str, Any] = {"dim": 5, "codebook_size": 8, **({"num_quantizers": 2} if residual else {})}
    official = (library.ResidualLFQ if residual else library.LFQ)(**config)
    cls: type[Block] = ResidualLookupFreeQuantizer if residual else LookupFreeQuantizer
    arguments = cls.layouts[-1].arguments(config)
    tensors = official.state_dict()
    save_file(tensors, tmp_path / "model.safetensors")
    cls.from_pretrained(tmp_path, **arguments)

    name = next(name for name in tensors if name.endswith("mask"))
    save_file({**tensors, name: tensors[name].flip(0).contiguous()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"{name} differs by up to 3"):
        cls.from_pretrained(tmp_path, **arguments)
