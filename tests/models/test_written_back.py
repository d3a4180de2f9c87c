"""Published models and trunks as their authors' files, and back: the same arguments, the same tensors."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmblocks import TokenTable
from mmblocks.block import Block
from mmblocks.models import EVE1, EVE2, Emu3, LlamaGen, LlamaGenT2I
from mmblocks.models.acdit.model import ACDiT
from mmblocks.models.chameleon.model import Chameleon
from mmblocks.models.janus.model import Janus
from mmblocks.models.mar.model import MAR
from mmblocks.models.neo import NEO
from mmblocks.models.omnigen.model import OmniGen
from mmblocks.models.orthus import Orthus
from mmblocks.models.var.transformer import VAR
from mmblocks.trunks import RoutedDecoder
from mmblocks.trunks.chameleon import ChameleonTrunk
from mmblocks.trunks.neo.trunk import NEOTrunk

LLAMA: dict[str, Any] = {
    "dim": 16,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_dim": 24,
    "norm_eps": 1e-4,
    "rope_theta": 500.0,
}
MODEL = {**LLAMA, "vocab_size": 20}
LINEAR = {"type": "linear", "factor": 2.0}
DYNAMIC = {"type": "dynamic", "factor": 2.0, "max_position": 64}
YARN = {"type": "yarn", "factor": 4.0, "max_position": 32, "beta_fast": 16}
LONGROPE = {"type": "longrope", "factor": 32.0, "max_position": 12, "short_factor": (1.0, 1.1), "long_factor": (1.5, 3.0)}
VISION1 = {"vision_dim": 16, "patch_size": 4, "merge_size": 2, "image_size": 32, "teacher_image_size": 16, "teacher_patch_size": 4}
PLACES = {"rope_theta_place": 30.0, "bias": True, "num_prebuffer_layers": 1}
STEM = {"hidden_dim": 8, "patch_size": 4, "merge_size": 2, "rope_theta": 20.0, "min_pixels": 1024, "max_pixels": 4096}
LATENTS = {"num_codes": 8, "latent_dim": 4, "head_width": 8, "num_head_blocks": 1, "repeats": 2, "num_steps": 5}
OMNIGEN = {name: value for name, value in MODEL.items() if name != "head_dim"}
MAR_HALVES = {f"{half}_{name}": value for half, value in (("encoder", 4), ("decoder", 2)) for name in ("layers", "heads")}
MAR_SIZES = {"channels": 3, "grid": (3, 3), "num_classes": 4, "encoder_dim": 16, "decoder_dim": 12, "patch_size": 2}
VAR_SIZES = {"num_codes": 10, "code_dim": 4, "num_classes": 5, "dim": 16, "num_layers": 2, "num_heads": 2, "scales": (1, 2, 3)}
ACDIT = {"latent_dim": 3, "dim": 24, "num_layers": 2, "num_heads": 2, "num_classes": 5, "mlp_ratio": 2.0}
JANUS_TOWER = {"image_size": 32, "patch_size": 8, "dim": 8, "num_layers": 2, "num_heads": 2, "mlp_dim": 20}
JANUS_TOWER |= {"fit": "pad", "mean": (0.5, 0.25, 0.5), "std": (0.5, 0.5, 0.25)}
JANUS = {name: value for name, value in MODEL.items() if name != "head_dim"}
JANUS |= {"num_codes": 12, "code_dim": 3, "vision": JANUS_TOWER}
PADDED = {**JANUS_TOWER, "fit": "pad-rounded"}
CODES = {"vocab_size": 11, "dim": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "norm_eps": 1e-4, "dropout": 0.3}

CASES: list[tuple[type[Block], str, Mapping[str, Any]]] = [
    (Emu3, "emu3", {**MODEL, "dropout": 0.3}),
    (Emu3, "emu3", {**MODEL, "rope_scaling": LINEAR}),
    (Emu3, "emu3.5", {**MODEL, "qk_norm": True, "rope_scaling": DYNAMIC}),
    (EVE1, "eve1", {**MODEL, **VISION1, "projector_layers": 3, "mean": (0.5, 0.5, 0.25)}),
    (EVE2, "eve2", {**MODEL, "vision_dim": 8, "patch_size": 4, "merge_size": 3, "max_size": 64, "std": (0.5, 0.25, 0.5)}),
    (EVE2, "eve2", {**MODEL, "vision_dim": 8, "routed": ("attention", "mlp"), "rope_scaling": YARN}),
    (RoutedDecoder, "eve2", {**LLAMA, "qkv_bias": True, "routed": ("norms",)}),
    (RoutedDecoder, "mono-internvl", {**LLAMA, "routed": ("mlp",), "rope_scaling": LINEAR}),
    (NEO, "neo", {**MODEL, **PLACES, "vision": STEM}),
    (NEO, "neo", {**MODEL, **PLACES, "vision": STEM, "tie_embeddings": True}),
    (NEOTrunk, "neo", {**LLAMA, **PLACES}),
    (NEOTrunk, "neo-llm", {**LLAMA, **PLACES}),
    (ChameleonTrunk, "chameleon", {**LLAMA, "post_norm": True, "rope_scaling": DYNAMIC}),
    (Chameleon, "chameleon", {**MODEL, "post_norm": True, "rope_scaling": LINEAR}),
    (Janus, "janus", {**JANUS, "head_dim_codes": 9, "aligner_layers": 1, "code_layers": 3, "rope_scaling": LINEAR}),
    (Janus, "janus-transformers", {**JANUS, "vision": PADDED, "aligner_layers": 3, "code_layers": 1}),
    (Janus, "janus-transformers", {**JANUS, "vision": PADDED, "tie_embeddings": True}),
    (Orthus, "orthus", {**MODEL, **LATENTS, "post_norm": True, "rope_scaling": LINEAR}),
    (
        OmniGen,
        "omnigen",
        {**OMNIGEN, "rope_scaling": LONGROPE, "channels": 2, "patch_size": 1, "table_size": 8, "interpolation": 2.0},
    ),
    (OmniGen, "omnigen", {**OMNIGEN, "table_size": 8}),
    (OmniGen, "omnigen-diffusers", {**OMNIGEN, "rope_scaling": LONGROPE, "channels": 2, "table_size": 8}),
    (MAR, "mar", {**MAR_SIZES, **MAR_HALVES, "dropout": 0.3, "min_mask_ratio": 0.5, "norm_eps": 1e-4}),
    (VAR, "var", {**VAR_SIZES, "l2_norm": False, "shared_modulation": True, "norm_eps": 1e-4}),
    (ACDiT, "acdit", {**ACDIT, "grid": (1, 4, 4), "block_size": 4, "qk_norm": False, "label_dropout": 0.0}),
    (ACDiT, "acdit", {**ACDIT, "grid": (3, 2, 2), "block_size": 4, "square_blocks": False, "axis_shares": (2, 2, 2)}),
    (LlamaGen, "llamagen-c2i", {**CODES, "num_classes": 4, "mlp_dim": 24}),
    (LlamaGen, "llamagen-c2i", {**CODES, "num_classes": 4, "mlp_dim": 77}),
    (LlamaGenT2I, "llamagen-t2i", {**CODES, "caption_dim": 6, "num_caption_tokens": 5, "mlp_dim": 512}),
]


@pytest.mark.parametrize(
    ("cls", "layout", "options"), CASES, ids=[f"{n}-{c.__name__}-{layout}" for n, (c, layout, _) in enumerate(CASES)]
)
def test_a_model_is_the_same_after_a_way_through_its_authors_files(tmp_path, cls, layout: str, options: Mapping[str, Any]) -> None:
    torch.manual_seed(0)
    block = cls(**options)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    block.to_upstream(tmp_path / "first", layout=layout)
    once = cls.from_pretrained(tmp_path / "first")
    once.to_upstream(tmp_path / "second")
    again = cls.from_pretrained(tmp_path / "second")

    assert {name: value for name, value in once.config.items() if name in options and value != options[name]} == {}
    assert again.config == once.config
    for other in (once, again):
        found, wanted = other.state_dict(), block.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_every_layout_is_written_back() -> None:
    written = {(cls, layout) for cls, layout, _ in CASES}
    for cls in {cls for cls, _, _ in CASES}:
        for layout in cls.layouts:
            assert (layout.published_config is None) == ((cls, layout.name) not in written), layout.name


@pytest.mark.parametrize(
    ("cls", "layout", "options", "message"),
    [
        (MAR, "mar", {**MAR_SIZES, **MAR_HALVES, "grid": (2, 3)}, r"grid is \(2, 3\)"),
        (VAR, "var", {**VAR_SIZES, "scales": (1, (2, 1))}, r"scales has \(2, 1\)"),
        (ACDiT, "acdit", {**ACDIT, "grid": (1, 4, 6), "block_size": 4}, r"grid is \(1, 4, 6\)"),
        (EVE1, "eve1", {**MODEL, **VISION1, "vision_heads": 2}, "vision_heads is 2"),
        (OmniGen, "omnigen", {**OMNIGEN, "table_size": 8, "base_size": 32}, "base_size is 32"),
        (OmniGen, "omnigen", {**OMNIGEN, "table_size": 8, "rope_scaling": LINEAR}, "rope_scaling has type 'linear'"),
        (OmniGen, "omnigen-diffusers", {**OMNIGEN, "table_size": 8, "interpolation": 2.0}, "interpolation is 2.0"),
        (Orthus, "orthus", {**MODEL, **LATENTS, "first_code": 2}, "first_code is 2"),
        (Janus, "janus", {**JANUS, "tie_embeddings": True}, "tie_embeddings is True"),
        (Janus, "janus", {**JANUS, "vision": {**JANUS_TOWER, "num_layers": 25}}, "vision has num_layers 25"),
        (Janus, "janus", {**JANUS, "vision": {**JANUS_TOWER, "activation": "gelu_tanh"}}, "activation is 'gelu_tanh'"),
        (Janus, "janus", {**JANUS, "vision": PADDED}, "fit is 'pad-rounded'"),
        (Janus, "janus-transformers", JANUS, "fit is 'pad'"),
        (Janus, "janus-transformers", {**JANUS, "vision": PADDED, "head_dim_codes": 9}, "head_dim_codes is 9"),
        (Janus, "janus-transformers", {**JANUS, "vision": {**PADDED, "dim": 22, "mlp_dim": 30}}, "vision has mlp_dim 30"),
        (RoutedDecoder, "eve2", {**LLAMA, "qkv_bias": True, "rope_sections": (2, 1, 1)}, r"rope_sections is \(2, 1, 1\)"),
        (RoutedDecoder, "mono-internvl", {**LLAMA, "routed": ("mlp",), "rope_sections": (2, 1, 1)}, "rope_sections is"),
    ],
)
def test_what_the_authors_code_cannot_have_is_not_written(tmp_path, cls, layout, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**options).to_upstream(tmp_path / "folder", layout=layout)
    assert not (tmp_path / "folder").exists()


def test_what_transformers_makes_of_a_written_config(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    for cls, layout, theirs, options in (
        (Emu3, "emu3", transformers.Emu3TextConfig, {**MODEL, "rope_scaling": LINEAR}),
        (ChameleonTrunk, "chameleon", transformers.ChameleonConfig, {**LLAMA, "post_norm": True, "rope_scaling": LINEAR}),
    ):
        cls(**options).to_upstream(tmp_path / layout, layout=layout)
        written = json.loads((tmp_path / layout / "config.json").read_text())
        written.pop("model_type")
        config = theirs(**{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **written})
        assert config.rope_parameters["rope_theta"] == 500.0 and config.rope_parameters["factor"] == 2.0
        assert (config.hidden_size, config.num_key_value_heads, config.rms_norm_eps) == (16, 2, 1e-4)


def test_transformers_reads_what_is_written_of_emu3(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = Emu3(**{**MODEL, "rope_scaling": LINEAR}).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.to_upstream(tmp_path, layout="emu3")
    written = json.loads((tmp_path / "config.json").read_text())
    config = transformers.Emu3TextConfig(**{**written, "model_type": "emu3_text_model", "pad_token_id": 0})
    theirs = transformers.Emu3ForCausalLM(config).eval()
    theirs.load_state_dict(load_file(tmp_path / "model.safetensors"))
    ids = torch.randint(20, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden = ours.trunk(ours.inputs["text"](ids), TokenTable.text(2, 9))
        torch.testing.assert_close(ours.outputs["text"].logits(hidden), theirs(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_diffusers_reads_what_is_written_of_omnigen(tmp_path) -> None:
    diffusers = pytest.importorskip("diffusers")
    ours = OmniGen(**{**OMNIGEN, "rope_scaling": LONGROPE, "channels": 2, "table_size": 8})
    ours.to_upstream(tmp_path, layout="omnigen-diffusers")
    written = {name: value for name, value in json.loads((tmp_path / "config.json").read_text()).items() if name[0] != "_"}
    tensors = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    theirs = diffusers.OmniGenTransformer2DModel(**written, pad_token_id=0)
    torch.testing.assert_close(tensors["patch_embedding.pos_embed"], theirs.state_dict()["patch_embedding.pos_embed"])
    theirs.load_state_dict(tensors)


def test_tables_that_the_authors_code_asks_for_are_written(tmp_path) -> None:
    VAR(**VAR_SIZES).to_upstream(tmp_path, layout="var")
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["lvl_1L"].tolist() == [[0] + [1] * 4 + [2] * 9]
    assert tensors["attn_bias_for_masking"].shape == (1, 1, 14, 14) and tensors["attn_bias_for_masking"][0, 0, 0, 1] == -torch.inf
    assert all(torch.equal(tensors[f"blocks.{number}.attn.zero_k_bias"], torch.zeros(16)) for number in range(2))
