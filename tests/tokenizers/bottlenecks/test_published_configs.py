"""What ``to_upstream`` writes of a bottleneck loads again, with the same arguments and tensors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import vector_quantize_pytorch  # type: ignore[import-untyped]
from safetensors.torch import load_file, save_file

from mmblocks import Block
from mmblocks.tokenizers.bottlenecks.ema import EMAVectorQuantizer
from mmblocks.tokenizers.bottlenecks.finite_scalar import FiniteScalarQuantizer
from mmblocks.tokenizers.bottlenecks.index_backpropagation import IndexBackpropagation
from mmblocks.tokenizers.bottlenecks.lookup_free import LookupFreeQuantizer
from mmblocks.tokenizers.bottlenecks.multi_codebook import MultiCodebook
from mmblocks.tokenizers.bottlenecks.multi_head import MultiHeadVectorQuantizer
from mmblocks.tokenizers.bottlenecks.multi_scale import MultiScaleQuantizer
from mmblocks.tokenizers.bottlenecks.residual.finite_scalar import ResidualFiniteScalarQuantizer
from mmblocks.tokenizers.bottlenecks.residual.lookup_free import ResidualLookupFreeQuantizer
from mmblocks.tokenizers.bottlenecks.residual.quantizer import ResidualQuantizer
from mmblocks.tokenizers.bottlenecks.residual.rq import RQBottleneck
from mmblocks.tokenizers.bottlenecks.sim_vq import SimVQ
from mmblocks.tokenizers.bottlenecks.text_aligned import TextAlignedQuantizer

VQ = "vector_quantize_pytorch"
LFQ: dict[str, Any] = {"first_bit": "most", "joint_entropy": False, "floor": "clamp"}
CASES: list[tuple[type[Block], str, dict[str, Any]]] = [
    (EMAVectorQuantizer, VQ, {"num_codes": 6, "dim": 4}),
    (
        EMAVectorQuantizer,
        VQ,
        {
            "num_codes": 6,
            "dim": 4,
            "metric": "cosine",
            "decay": 0.7,
            "eps": 1e-4,
            "dead_below": 2.0,
            "kmeans_init": True,
            "estimator": "rotation",
        },
    ),
    (FiniteScalarQuantizer, VQ, {"levels": (5, 3), "dim": 4}),
    (FiniteScalarQuantizer, VQ, {"levels": (5, 3)}),  # without tensors, as some below
    (
        FiniteScalarQuantizer,
        VQ,
        {"levels": (4, 2), "dim": 6, "num_numbers": 2, "symmetric": True, "clamp": True, "projection_bias": False},
    ),
    (IndexBackpropagation, "ibq", {"num_codes": 6, "dim": 4}),
    (IndexBackpropagation, "ibq", {"num_codes": 6, "dim": 4, "entropy_temperature": 0.5}),
    (LookupFreeQuantizer, VQ, {**LFQ, "bits": (3,), "dim": 5}),
    (LookupFreeQuantizer, VQ, {**LFQ, "bits": (3,), "dim": 3}),
    (
        LookupFreeQuantizer,
        VQ,
        {
            **LFQ,
            "bits": (3, 3),
            "dim": 5,
            "temperature": 0.25,
            "scale": 0.5,
            "spherical": True,
            "soft_clamp": 2.0,
            "projection_bias": False,
        },
    ),
    (MultiCodebook, "unitok", {"num_codebooks": 3, "num_codes": 5, "code_dim": 2}),
    (MultiCodebook, "unitok", {"num_codebooks": 3, "num_codes": 5, "code_dim": 2, "entropy_temperature": 0.1}),
    (MultiHeadVectorQuantizer, VQ, {"dim": 4, "num_codes": 6}),
    (
        MultiHeadVectorQuantizer,
        VQ,
        {
            "dim": 4,
            "num_codes": 6,
            "num_heads": 2,
            "code_dim": 3,
            "separate_codebooks": True,
            "metric": "cosine",
            "options": {"decay": 0.7, "layernorm_after_project_in": True},
        },
    ),
    (MultiScaleQuantizer, "var", {"num_codes": 6, "dim": 4, "scales": (1, 2), "blend": 0.25, "metric": "cosine"}),
    (MultiScaleQuantizer, "var-one-blend", {"num_codes": 6, "dim": 4, "scales": (1, 2), "num_blends": 1}),
    (MultiScaleQuantizer, "var-all-blends", {"num_codes": 6, "dim": 4, "scales": (1, 2), "num_blends": 0}),
    (MultiScaleQuantizer, "var-all-blends", {"num_codes": 6, "dim": 4, "scales": (1, 2), "num_blends": 3}),
    (ResidualQuantizer, VQ, {"dim": 4, "num_codes": 6, "num_quantizers": 2}),
    (ResidualQuantizer, VQ, {"dim": 4, "num_codes": (6, 3), "num_quantizers": 2, "code_dim": 2, "metric": "cosine"}),
    (
        ResidualQuantizer,
        VQ,
        {"dim": 4, "num_codes": 6, "num_quantizers": 3, "options": {"mlp_kwargs": {"depth": 1}}, "implicit": True},
    ),
    (
        ResidualQuantizer,
        f"{VQ}_grouped",
        {"dim": 4, "num_codes": 6, "num_quantizers": 2, "num_groups": 2, "options": {"beam_size": 2}},
    ),
    (ResidualFiniteScalarQuantizer, VQ, {"levels": (5, 3), "num_quantizers": 2, "dim": 4}),
    (ResidualFiniteScalarQuantizer, VQ, {"levels": (5, 3), "num_quantizers": 2, "dim": 2}),
    (ResidualFiniteScalarQuantizer, f"{VQ}_grouped", {"levels": (5, 3), "num_quantizers": 2, "dim": 4, "num_groups": 2}),
    (
        ResidualFiniteScalarQuantizer,
        f"{VQ}_grouped",
        {
            "levels": (5, 3),
            "num_quantizers": 2,
            "dim": 6,
            "num_groups": 2,
            "hard_clamp": False,
            "soft_clamp": (1.5, 2.0),
            "dropout": True,
            "dropout_first": 1,
            "dropout_multiple": 2,
        },
    ),
    (ResidualLookupFreeQuantizer, VQ, {"bits": 3, "num_quantizers": 2, "dim": 4}),
    (ResidualLookupFreeQuantizer, VQ, {"bits": 3, "num_quantizers": 2, "dim": 3}),
    (ResidualLookupFreeQuantizer, f"{VQ}_grouped", {"bits": 3, "num_quantizers": 2, "dim": 6, "num_groups": 2}),
    (
        ResidualLookupFreeQuantizer,
        f"{VQ}_grouped",
        {"bits": 3, "num_quantizers": 2, "dim": 8, "num_groups": 2, "temperature": 0.5, "spherical": True, "soft_clamp": 2.0},
    ),
    (RQBottleneck, "rq", {"num_codes": 6, "dim": 4, "depth": 2}),
    (
        RQBottleneck,
        "rq",
        {"num_codes": (6, 5), "dim": 4, "depth": 2, "merge": (2, 1), "decay": (0.9, 0.8), "restart_unused": False},
    ),
    (RQBottleneck, "rq", {"num_codes": 6, "dim": 4, "depth": 2, "shared": True}),
    (SimVQ, VQ, {"num_codes": 6, "dim": 4}),
    (SimVQ, VQ, {"num_codes": 6, "dim": 4, "frozen_dim": 3, "estimator": "rotation"}),
    (TextAlignedQuantizer, "tar", {"num_codes": 6, "code_dim": 4, "in_dim": 5, "out_dim": 3, "temperature": 0.5}),
    (TextAlignedQuantizer, "tar", {"num_codes": 6, "code_dim": 4, "in_dim": 5, "out_dim": 3, "metric": "l2"}),
]


@pytest.mark.parametrize(("cls", "layout", "arguments"), CASES, ids=[f"{cls.__name__}-{layout}" for cls, layout, _ in CASES])
def test_round_trip(tmp_path: Path, cls: type[Block], layout: str, arguments: dict[str, Any]) -> None:
    bottleneck = cls(**arguments)
    bottleneck.to_upstream(tmp_path, layout=layout)

    again = cls.from_pretrained(tmp_path)

    assert again.origin is not None
    assert again.origin.layout == layout
    assert again.config == bottleneck.config
    torch.testing.assert_close(again.state_dict(), bottleneck.state_dict(), rtol=0, atol=0)
    assert json.loads((tmp_path / "config.json").read_text())


def test_the_librarys_file_of_a_bottleneck_without_tensors(tmp_path: Path) -> None:
    """It holds a table of bits, which follows from the arguments."""
    official = vector_quantize_pytorch.LFQ(dim=3, codebook_size=8)
    save_file(official.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"dim": 3, "codebook_size": 8}))
    assert LookupFreeQuantizer.from_pretrained(tmp_path).config["bits"] == (3,)

    (tmp_path / "config.json").write_text(json.dumps({"dim": 4, "codebook_size": 8}))
    with pytest.raises(ValueError, match=r"fits no layout of LookupFreeQuantizer(.|\n)*none of its tensors is there"):
        LookupFreeQuantizer.from_pretrained(tmp_path)
    save_file({"other": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"fits no layout of FiniteScalarQuantizer(.|\n)*other: \(2,\)"):
        FiniteScalarQuantizer.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        LookupFreeQuantizer.from_pretrained(tmp_path)


def test_every_layout_is_written_back() -> None:
    tried = {(cls, layout) for cls, layout, _ in CASES}
    for cls in {cls for cls, _ in tried}:
        for layout in cls.layouts:
            assert layout.published_config is not None
            assert (cls, layout.name) in tried


OFFICIAL: dict[type[Block], str] = {
    EMAVectorQuantizer: "VectorQuantize",
    FiniteScalarQuantizer: "FSQ",
    LookupFreeQuantizer: "LFQ",
    MultiHeadVectorQuantizer: "VectorQuantize",
    ResidualFiniteScalarQuantizer: "ResidualFSQ",
    ResidualLookupFreeQuantizer: "ResidualLFQ",
    ResidualQuantizer: "ResidualVQ",
    SimVQ: "SimVQ",
}


@pytest.mark.parametrize(
    ("cls", "layout", "arguments"),
    [(cls, layout, arguments) for cls, layout, arguments in CASES if cls in OFFICIAL],
)
def test_the_library_reads_what_is_written(tmp_path: Path, cls: type[Block], layout: str, arguments: dict[str, Any]) -> None:
    bottleneck = cls(**arguments).eval()
    with torch.no_grad():
        for tensor in bottleneck.parameters():
            tensor.normal_()
        if isinstance(bottleneck, EMAVectorQuantizer):  # or the library places the codes in evaluation too
            bottleneck.placed.fill_(True)
    bottleneck.to_upstream(tmp_path, layout=layout)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("inv_temperature", None)  # of a forward pass
    for name in ("codebook_size", "soft_clamp_input_value"):
        if isinstance(config.get(name), list):
            config[name] = tuple(config[name]) if name == "codebook_size" else torch.tensor(config[name])
    grouped = "Grouped" if layout.endswith("grouped") else ""
    official = getattr(vector_quantize_pytorch, grouped + OFFICIAL[cls])(**config).eval()
    lacking = official.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    x = torch.randn(2, 7, bottleneck.dim if hasattr(bottleneck, "dim") else arguments["dim"])

    latents, (quantized, ids, *_) = bottleneck(x), official(x)

    assert not lacking.unexpected_keys
    assert all(name.endswith("mask") for name in lacking.missing_keys)
    torch.testing.assert_close(latents.z, quantized, atol=1e-5, rtol=1e-5)
    ids = torch.cat([*ids], dim=-1) if grouped else ids
    assert torch.equal(latents.ids, ids.long())
