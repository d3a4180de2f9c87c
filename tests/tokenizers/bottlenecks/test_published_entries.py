"""Entries of published configs of bottlenecks: each is followed, refused or known to change nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mmblocks import Block
from mmblocks.tokenizers.bottlenecks.index_backpropagation import IndexBackpropagation
from mmblocks.tokenizers.bottlenecks.multi_codebook import MultiCodebook
from mmblocks.tokenizers.bottlenecks.multi_scale import MultiScaleQuantizer
from mmblocks.tokenizers.bottlenecks.residual.rq import RQBottleneck
from mmblocks.tokenizers.bottlenecks.text_aligned import TextAlignedQuantizer

IBQ: dict[str, Any] = {"n_e": 6, "e_dim": 4}
RQ: dict[str, Any] = {"latent_shape": [4, 4, 3], "code_shape": [2, 4, 2], "n_embed": 6}
TAR: dict[str, Any] = {"input_dim": 5, "bottleneck_dim": 4, "output_dim": 3, "codebook_size": 6, "l2_normalized": True}
VAR: dict[str, Any] = {"vocab_size": 6, "Cvae": 4, "v_patch_nums": [1, 2]}


def arguments(cls: type[Block], config: dict[str, Any], layout: str | None = None) -> dict[str, Any]:
    (table,) = (table for table in cls.layouts if layout in (None, table.name))
    return table.arguments(config)


def test_entries_that_change_nothing() -> None:
    weights = {"beta": 0.5, "sample_minimization_weight": 2.0, "batch_maximization_weight": 2.0, "unknown_index": "random"}
    assert arguments(IndexBackpropagation, {**IBQ, **weights, "cosine_similarity": True, "remap": None}) == arguments(
        IndexBackpropagation, IBQ
    )
    unitok = {"vocab_size": 15, "vocab_width": 6, "num_codebooks": 3}
    options = {"vq_beta": 0.5, "model": "vitamin_base", "lr": 1e-3, "e_temp": 0.1, "quant_proj": "linear"}
    assert arguments(MultiCodebook, {**unitok, **options}) == arguments(MultiCodebook, unitok)
    nested = {name: TAR[name] for name in ("input_dim", "bottleneck_dim", "output_dim")}
    inner = {"codebook_size": 6, "l2_normalized": True, "dim": 9}
    assert arguments(TextAlignedQuantizer, {**nested, "regularizer": {"name": "simvq", "args": inner}}) == arguments(
        TextAlignedQuantizer, TAR
    )
    tar = {"token_nums": 9, "same_index_shape": False}
    assert arguments(TextAlignedQuantizer, {**TAR, **tar}) == arguments(TextAlignedQuantizer, TAR)


@pytest.mark.parametrize(
    ("cls", "layout", "config", "name", "value"),
    [
        (IndexBackpropagation, None, {**IBQ, "use_entropy_loss": True}, "entropy_temperature", 0.01),
        (IndexBackpropagation, None, {**IBQ, "use_entropy_loss": True, "entropy_temperature": 0.5}, "entropy_temperature", 0.5),
        (IndexBackpropagation, None, {**IBQ, "entropy_temperature": 0.5}, "entropy_temperature", None),
        (MultiCodebook, None, {"le": 0.1, "e_temp": 0.5}, "entropy_temperature", 0.5),
        (MultiScaleQuantizer, "var-all-blends", {**VAR, "share_quant_resi": 0}, "num_blends", 0),
        (MultiScaleQuantizer, "var-all-blends", {**VAR, "share_quant_resi": 0, "default_qresi_counts": 3}, "num_blends", 3),
        (MultiScaleQuantizer, "var", {**VAR, "default_qresi_counts": 3}, "num_blends", 4),
        (RQBottleneck, None, RQ, "merge", (2, 1)),
    ],
)
def test_entries_that_are_followed(cls: type[Block], layout: str | None, config: dict[str, Any], name: str, value: Any) -> None:
    assert arguments(cls, config, layout)[name] == value


@pytest.mark.parametrize(
    ("cls", "layout", "config", "message"),
    [
        (IndexBackpropagation, None, {**IBQ, "l2_normalize": True}, "l2_normalize is True; accepted: False"),
        (IndexBackpropagation, None, {**IBQ, "remap": "used.npy"}, "remap"),
        (IndexBackpropagation, None, {**IBQ, "n_embed": 8}, "n_embed"),
        (MultiCodebook, None, {"vocab_size": 16, "num_codebooks": 3}, "multiples of num_codebooks"),
        (MultiCodebook, None, {"codebook_size": 16}, "codebook_size"),
        (MultiScaleQuantizer, "var", {**VAR, "z_channels": 4}, "z_channels"),
        (RQBottleneck, None, {**RQ, "commitment_loss": "last"}, "commitment_loss is 'last'; accepted: 'cumsum'"),
        (RQBottleneck, None, {**RQ, "code_shape": [3, 4, 2]}, "latent_shape is 4x4, code_shape 3x4"),
        (RQBottleneck, None, {**RQ, "ema": False}, "ema"),
        (TextAlignedQuantizer, None, {**TAR, "llm_model": "qwen"}, "llm_model"),
        (TextAlignedQuantizer, None, {**TAR, "regularizer": {"name": "vq", "args": {}}}, "regularizer.name is 'vq'"),
        (TextAlignedQuantizer, None, {**TAR, "regularizer": {"args": {"codebook_size": 6, "beta": 1}}}, "regularizer.args.beta"),
    ],
)
def test_entries_that_are_refused(cls: type[Block], layout: str | None, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arguments(cls, config, layout)


def test_a_learned_temperature_is_what_the_config_says(tmp_path: Path) -> None:
    config = {**TAR, "stochastic": True, "stochastic_temperature": -1.0}
    quantizer = TextAlignedQuantizer(**arguments(TextAlignedQuantizer, config))
    (layout,) = quantizer.layouts
    tensors = dict(layout.convert(quantizer.state_dict(), quantizer.config, to="theirs"))
    for inverse, fits in ((10.0, True), (5.0, False)):
        save_file({**tensors, "regularizer.stochastic_temperature_inv": torch.tensor(inverse)}, tmp_path / "model.safetensors")
        if fits:
            assert TextAlignedQuantizer.from_pretrained(tmp_path, **quantizer.config).temperature == 0.1
            continue
        with pytest.raises(ValueError, match=r"stochastic_temperature_inv differs by up to 0\.5"):
            TextAlignedQuantizer.from_pretrained(tmp_path, **quantizer.config)


@pytest.mark.parametrize(("layout", "count"), [("var", 1), ("var", 0), ("var-one-blend", 2)])
def test_blends_that_a_layout_cannot_say(tmp_path: Path, layout: str, count: int) -> None:
    quantizer = MultiScaleQuantizer(num_codes=6, dim=4, scales=(1, 2), num_blends=count)
    with pytest.raises(ValueError, match=r"num_blends is|has no place"):
        quantizer.to_upstream(tmp_path / "there", layout=layout)
