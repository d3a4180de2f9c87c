"""Published configs of connectors: followed entry by entry, refused where they say something else, and written back."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmblocks import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.connectors.causal_former import CausalFormer
from mmblocks.connectors.emu2 import Emu2DownProjection, Emu2UpProjection
from mmblocks.connectors.mlp import MLPProjector
from mmblocks.connectors.perceiver import PerceiverResampler
from mmblocks.connectors.published_widths import _WIDTHS
from mmblocks.connectors.qformer import QFormerConnector
from mmblocks.connectors.spatial_aggregator import SpatialAggregator
from mmblocks.connectors.token_flex import TokenFlexProjector
from tests.shared.old_transformers import OLD_ENTRIES
from tests.shared.written_back import check_written_back

QFORMER = {"dim": 8, "in_dim": 6, "hidden_dim": 12, "num_layers": 3, "num_heads": 2, "mlp_dim": 10, "num_queries": 5}
FORMER = {"in_dim": 6, "dim": 8, "num_queries": 5, "hidden_dim": 12, "num_layers": 2, "num_heads": 3, "head_dim": 4, "mlp_dim": 10}
RESAMPLER = {"dim": 6, "num_latents": 5, "num_layers": 2, "num_heads": 3, "head_dim": 4}

WRITTEN: list[tuple[str, Callable[[], Block]]] = [
    ("blip2-opt", lambda: QFormerConnector(**QFORMER)),
    ("blip2-t5", lambda: QFormerConnector(**QFORMER, activation="relu", norm_eps=1e-5, cross_attention_every=3)),
    (
        "blip2-transformers",
        lambda: QFormerConnector(**QFORMER, activation="gelu_tanh", norm_eps=1e-3, input_norm_eps=1e-4, cross_attention_every=1),
    ),
    ("llava", lambda: MLPProjector(in_dim=6, dim=10, num_layers=3)),
    ("llava-linear", lambda: MLPProjector(in_dim=6, dim=10, num_layers=1)),
    ("llava-hub", lambda: MLPProjector(in_dim=6, dim=10, bias=False, activation="gelu_tanh")),
    ("llava-transformers", lambda: MLPProjector(in_dim=6, dim=10, activation="relu")),
    ("internvl", lambda: MLPProjector(in_dim=24, dim=10, norm=True)),
    ("internvl-transformers", lambda: MLPProjector(in_dim=6, dim=10, norm=True, activation="silu")),
    ("causal_former", lambda: CausalFormer(**FORMER, num_buckets=8, max_distance=20, norm_eps=1e-4)),
    ("emu", lambda: CausalFormer(**FORMER, input_norm=True)),
    ("flamingo", lambda: PerceiverResampler(**RESAMPLER, mlp_dim=10)),
    ("open_flamingo", lambda: PerceiverResampler(**RESAMPLER, max_frames=4)),
    ("idefics", lambda: PerceiverResampler(**RESAMPLER, activation="relu", qk_norm=True)),
    ("ristretto", lambda: TokenFlexProjector(in_dim=6, dim=8, num_tokens=64)),
    (
        "cambrian",
        lambda: SpatialAggregator(in_dims=(5, 7), dim=10, windows=(1, 2), grid=(2, 2), hidden_dim=16, num_layers=2, num_heads=16),
    ),
    *((name, lambda: Emu2UpProjection(image_dim=6, dim=8, num_tokens=16)) for name in ("emu2", "emu2-gen", "emu2-hub")),
    ("emu2", lambda: Emu2UpProjection(image_dim=6, dim=8, num_tokens=None)),
    *((name, lambda: Emu2DownProjection(image_dim=6, dim=8)) for name in ("emu2", "emu2-gen", "emu2-hub")),
]


@pytest.mark.parametrize(("layout", "build"), WRITTEN, ids=[name for name, _ in WRITTEN])
def test_what_is_written_for_the_authors_is_read_again(layout, build, tmp_path) -> None:
    torch.manual_seed(0)
    again = check_written_back(build(), layout, tmp_path)
    usual = {name: value for name, value in build().config.items() if name not in ("mlp_dim", "hidden_dim")}
    assert usual.items() <= again.config.items()


@pytest.mark.parametrize(
    ("block", "layout", "message"),
    [
        (lambda: QFormerConnector(**QFORMER, causal=True), "blip2-opt", "causal is True; accepted in this layout: False"),
        (lambda: MLPProjector(in_dim=6, dim=10, norm=True), "llava-hub", "has no place for norm"),
        (lambda: MLPProjector(in_dim=6, dim=10, hidden_dim=7), "llava", "hidden_dim is 7"),
        (lambda: MLPProjector(in_dim=6, dim=10, activation="relu"), "llava", "activation is 'relu'"),
        (lambda: CausalFormer(**FORMER, input_norm=True), "causal_former", "input_norm is True|has no place for input_norm"),
        (lambda: PerceiverResampler(**RESAMPLER), "idefics", "activation is 'gelu'"),
    ],
)
def test_what_their_config_cannot_say_is_not_written(block, layout, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        block().to_upstream(tmp_path / "x", layout=layout)


def layout_of(cls: type[Block], name: str) -> Layout:
    (layout,) = (layout for layout in cls.layouts if layout.name == name)
    return layout


LLAVA = {"mm_hidden_size": 6, "hidden_size": 10, "mm_projector_type": "mlp2x_gelu"}
HUB = {"vision_config": {"hidden_size": 6}, "text_config": {"hidden_size": 10}}
INTERNVL = {"downsample_ratio": 0.5, "vision_config": {"hidden_size": 6}, "llm_config": {"hidden_size": 10}}
RISTRETTO = {"vision_config": {"hidden_size": 6}, "llm_config": {"hidden_size": 10}}
BLIP2 = {"qformer_config": {}, "vision_config": {}, "text_config": {"hidden_size": 8}}
IDEFICS = {"perceiver_config": {}, "vision_config": {"embed_dim": 6}, "use_resampler": True}
CAMBRIAN = {
    "mm_projector_type": "sva",
    "hidden_size": 10,
    "vision_hidden_size": 8,
    "num_query_group": 1,
    "query_num_list": [4],
    "mm_vision_tower_aux_token_len_list": [4, 16],
    "connector_depth": 2,
}
ALONE = {"vision_width": 6, "output_dim": 8, "n_causal": 5}

REFUSED = [
    (MLPProjector, "llava", LLAVA, "model_type", "mistral"),
    (MLPProjector, "llava", LLAVA, "architectures", ["LlamaForCausalLM"]),
    (MLPProjector, "llava", LLAVA, "projector_hidden_act", "relu"),
    (MLPProjector, "llava-hub", HUB, "model_type", "vipllava"),
    (MLPProjector, "llava-hub", HUB, "projector_hidden_act", "relu6"),
    (MLPProjector, "llava-hub", HUB, "projector_layers", 3),
    (MLPProjector, "internvl", INTERNVL, "projector_hidden_act", "relu"),
    (MLPProjector, "internvl", INTERNVL, "architectures", ["NEOChatModel"]),
    (QFormerConnector, "blip2-transformers", BLIP2, "qformer_config.use_qformer_text_input", True),
    (QFormerConnector, "blip2-transformers", BLIP2, "qformer_config.position_embedding_type", "relative_key"),
    (QFormerConnector, "blip2-transformers", BLIP2, "qformer_config.hidden_act", "gelu_10"),
    (QFormerConnector, "blip2-transformers", BLIP2, "model_type", "instructblip"),
    (QFormerConnector, "blip2-opt", {}, "position_embedding_type", "relative_key"),
    (QFormerConnector, "blip2-opt", {}, "vision_width", 7),
    (PerceiverResampler, "idefics", IDEFICS, "use_resampler", False),
    (PerceiverResampler, "idefics", IDEFICS, "perceiver_config.resampler_act", "gelu"),
    (PerceiverResampler, "flamingo", {"dim": 6}, "max_num_media", 4),
    (PerceiverResampler, "flamingo", {"dim": 6}, "activation", "relu"),
    (SpatialAggregator, "cambrian", CAMBRIAN, "mm_projector_type", "linear"),
    (SpatialAggregator, "cambrian", CAMBRIAN, "num_query_group", 2),
    (SpatialAggregator, "cambrian", CAMBRIAN, "model_type", "llava"),
    (SpatialAggregator, "cambrian", CAMBRIAN, "num_heads", 8),
    (TokenFlexProjector, "ristretto", RISTRETTO, "model_type", "llava"),
    (CausalFormer, "causal_former", ALONE, "t5_config.dense_act_fn", "gelu"),
    (CausalFormer, "causal_former", ALONE, "t5_config.model_type", "mt5"),
    (CausalFormer, "causal_former", ALONE, "n_query", 5),
    (CausalFormer, "emu", {"vision_cfg": {"width": 6}}, "model_type", "llama"),
    (Emu2UpProjection, "emu2-hub", {"vision_config": {"width": 6}, "hidden_size": 8}, "model_type", "llama"),
    (Emu2DownProjection, "emu2", {"vision_cfg": {"width": 6}, "llm_hidden": 8}, "n_query", 5),
]


@pytest.mark.parametrize(("cls", "name", "config", "entry", "value"), REFUSED, ids=[f"{r[0].__name__}-{r[3]}" for r in REFUSED])
def test_entries_that_say_something_else_are_refused(cls, name, config, entry, value) -> None:
    layout = layout_of(cls, name)
    layout.arguments(config)
    *inside, last = entry.split(".")
    changed = config | ({inside[0]: {**config.get(inside[0], {}), last: value}} if inside else {last: value})
    with pytest.raises(ValueError, match=last):
        layout.arguments(changed)


FOLLOWED: list[tuple[type[Block], str, dict[str, Any], str, Any, str, Any]] = [
    (MLPProjector, "llava-hub", HUB, "vision_feature_layer", [-2, -5], "in_dim", 12),
    (MLPProjector, "llava-hub", HUB, "multimodal_projector_bias", False, "bias", False),
    (MLPProjector, "internvl", INTERNVL, "downsample_ratio", 0.4, "in_dim", 24),
    (MLPProjector, "internvl-transformers", HUB, "projector_hidden_act", "quick_gelu", "activation", "quick_gelu"),
    (QFormerConnector, "blip2-opt", {}, "encoder_width", 6, "in_dim", 6),
    (CausalFormer, "causal_former", ALONE, "t5_config.layer_norm_epsilon", 0.1, "norm_eps", 0.1),
    (CausalFormer, "causal_former", ALONE, "t5_config.num_layers", 3, "num_layers", 3),
    (CausalFormer, "emu", {}, "vladapter_cfg.n_causal", 7, "num_queries", 7),
    (Emu2UpProjection, "emu2", {"vision_cfg": {}, "llm_hidden": 8}, "vision_cfg.n_query", 16, "num_tokens", 16),
    (SpatialAggregator, "cambrian", CAMBRIAN, "mm_vision_tower_aux_hidden_sizes", [5, 7], "in_dims", (5, 7)),
    (TokenFlexProjector, "ristretto", RISTRETTO, "num_image_token", 64, "num_tokens", 64),
    (PerceiverResampler, "flamingo", {"dim": 6}, "ff_mult", 2, "mlp_dim", 12),
]


@pytest.mark.parametrize(
    ("cls", "name", "config", "entry", "value", "argument", "wanted"), FOLLOWED, ids=[f"{f[0].__name__}-{f[3]}" for f in FOLLOWED]
)
def test_entries_are_followed(cls, name, config, entry, value, argument, wanted) -> None:
    *inside, last = entry.split(".")
    changed = config | ({inside[0]: {**config.get(inside[0], {}), last: value}} if inside else {last: value})
    assert layout_of(cls, name).arguments(changed)[argument] == wanted


def test_a_number_of_queries_that_emu_does_not_look_at() -> None:
    assert layout_of(CausalFormer, "emu").arguments({"multimodal_cfg": {"n_causal": 7}})["num_queries"] == 32


@pytest.mark.parametrize("kind", [kind for kind in _WIDTHS if kind not in ("internlm2", "intern_vit_6b")])
def test_widths_that_configs_leave_out_are_those_of_transformers(kind) -> None:
    from transformers import AutoConfig

    assert AutoConfig.for_model(kind).hidden_size == _WIDTHS[kind]


def test_a_width_that_nobody_knows_is_asked_for() -> None:
    with pytest.raises(ValueError, match="text_config has no hidden_size and is of the kind 'gpt_neox'"):
        layout_of(MLPProjector, "llava-hub").arguments(HUB | {"text_config": {"model_type": "gpt_neox"}})


@pytest.mark.parametrize(
    "act", ["gelu", "gelu_new", "quick_gelu", "relu", "silu", "gelu_fast", "gelu_accurate", "swish", "gelu_python"]
)
@pytest.mark.parametrize("layers", [-2, [-2, -1]])
def test_llavas_projector_with_other_entries_as_in_transformers(act, layers, tmp_path) -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    torch.manual_seed(0)
    sizes = {"intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=6, **sizes),
        text_config=LlamaConfig(hidden_size=10, **sizes),
        projector_hidden_act=act,
        vision_feature_layer=layers,
    )
    theirs = LlavaMultiModalProjector(config)
    tensors = {f"multi_modal_projector.{name}": tensor for name, tensor in theirs.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(tmp_path)
    features = 3 * torch.randn(2, 3, 6 if layers == -2 else 12)
    torch.testing.assert_close(MLPProjector.from_pretrained(tmp_path)(features), theirs(features))


@pytest.mark.parametrize("kind", ["llava", "llava_next", "llava_onevision", "internvl", "blip-2", "idefics"])
def test_configs_as_transformers_writes_them_are_read(kind) -> None:
    import transformers

    config = transformers.AutoConfig.for_model(kind)
    cls, name = {
        "internvl": (MLPProjector, "internvl-transformers"),
        "blip-2": (QFormerConnector, "blip2-transformers"),
        "idefics": (PerceiverResampler, "idefics"),
    }.get(kind, (MLPProjector, "llava-hub"))
    if kind == "idefics":
        config.use_resampler = True
    whole, short = (
        layout_of(cls, name).arguments(json.loads(json.dumps(one))) for one in (config.to_dict(), config.to_diff_dict())
    )
    assert whole == short
    assert whole["dim"] > 0


@pytest.mark.parametrize(
    ("entries", "wanted"),
    [({"hidden_act": "gelu_new"}, "gelu_tanh"), ({"layer_norm_eps": 0.3}, "gelu"), ({"hidden_act": "relu"}, "relu")],
)
def test_the_qformers_activation_and_epsilon_as_in_transformers(entries, wanted, tmp_path) -> None:
    from transformers import Blip2QFormerConfig
    from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "encoder_hidden_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 10}
    config = Blip2QFormerConfig(**sizes, **entries)
    theirs, features, queries = Blip2QFormerModel(config).eval(), torch.randn(2, 7, 6), torch.randn(1, 5, 12)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    norm, projection = torch.nn.LayerNorm(6, eps=1e-6), torch.nn.Linear(12, 8)
    tensors = {"query_tokens": queries}
    for name, part in (("qformer", theirs), ("vision_model.post_layernorm", norm), ("language_projection", projection)):
        tensors |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
    published = {"qformer_config": config.to_dict(), "vision_config": {}, "text_config": {"hidden_size": 8}, "num_query_tokens": 5}
    (tmp_path / "config.json").write_text(json.dumps(published))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours = QFormerConnector.from_pretrained(tmp_path)
    assert ours.config["activation"] == wanted
    with torch.no_grad():
        read = theirs(query_embeds=queries.expand(2, -1, -1), encoder_hidden_states=norm(features)).last_hidden_state
        torch.testing.assert_close(ours(features), projection(read), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
def test_the_causal_formers_epsilon_as_in_transformers(epsilon) -> None:
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5LayerNorm

    layout = layout_of(CausalFormer, "causal_former")
    config = T5Config(d_model=12, d_kv=4, d_ff=10, num_layers=2, num_heads=3, layer_norm_epsilon=epsilon)
    former = CausalFormer(**layout.arguments(ALONE | {"t5_config": json.loads(json.dumps(config.to_dict()))}))
    theirs, states = T5LayerNorm(12, eps=epsilon), torch.randn(2, 12)
    torch.testing.assert_close(former.layers[0].mlp_norm(states), theirs(states))
    torch.testing.assert_close(former.norm(states), theirs(states))


@pytest.mark.parametrize(
    ("cls", "name", "config", "parts"),
    [
        (QFormerConnector, "blip2-transformers", BLIP2, ("qformer_config", "vision_config", "text_config")),
        (MLPProjector, "llava-hub", HUB, ("vision_config", "text_config")),
        (MLPProjector, "llava", LLAVA, ()),
        (MLPProjector, "internvl", INTERNVL, ("vision_config", "llm_config")),
        (PerceiverResampler, "idefics", IDEFICS, ("perceiver_config", "vision_config")),
        (CausalFormer, "causal_former", ALONE | {"t5_config": {}}, ("t5_config",)),
        (SpatialAggregator, "cambrian", CAMBRIAN, ()),
        (TokenFlexProjector, "ristretto", RISTRETTO, ("vision_config", "llm_config")),
        (Emu2UpProjection, "emu2-hub", {"vision_config": {"width": 6}, "hidden_size": 8}, ()),
    ],
)
def test_what_transformers_writes_for_itself_changes_nothing(cls, name, config, parts) -> None:
    layout = layout_of(cls, name)
    around = {} if cls is CausalFormer else OLD_ENTRIES  # its own arguments, with a config of transformers among them
    old = around | config | {part: OLD_ENTRIES | config[part] for part in parts}
    assert layout.arguments(old) == layout.arguments(config)


def test_transformers_reads_what_is_written(tmp_path) -> None:
    from transformers import AutoConfig
    from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel
    from transformers.models.idefics.perceiver import IdeficsPerceiverResampler
    from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    torch.manual_seed(0)
    build = dict(WRITTEN)

    def theirs(layout, make, prefix):
        block = build[layout]().eval()
        block.to_upstream(tmp_path / layout, layout=layout)
        part = make(AutoConfig.from_pretrained(tmp_path / layout)).eval()
        written = load_file(tmp_path / layout / "model.safetensors")
        part.load_state_dict({key.removeprefix(prefix): value for key, value in written.items() if key.startswith(prefix)})
        return block, part

    for layout, make, prefix in (
        ("llava-hub", LlavaMultiModalProjector, "multi_modal_projector."),
        ("llava-transformers", LlavaMultiModalProjector, "model.multi_modal_projector."),
        ("internvl-transformers", InternVLMultiModalProjector, "model.multi_modal_projector."),
        ("idefics", _idefics_resampler(IdeficsPerceiverResampler), "model.perceiver_resampler."),
    ):
        block, part = theirs(layout, make, prefix)
        features = torch.randn(2, 3, 6)
        torch.testing.assert_close(block(features), part(features))
    block, part = theirs("blip2-transformers", lambda config: Blip2QFormerModel(config.qformer_config), "qformer.")
    features = torch.randn(2, 7, 6)
    read = part(query_embeds=block.qformer.queries.expand(2, -1, -1), encoder_hidden_states=features).last_hidden_state
    torch.testing.assert_close(block.qformer(features), read, atol=1e-5, rtol=1e-4)


def _idefics_resampler(cls):
    def make(config):
        sizes = config.perceiver_config
        counts = (sizes.resampler_depth, sizes.resampler_n_heads, sizes.resampler_head_dim, sizes.resampler_n_latents)
        assert config.use_resampler
        return cls(config, config.vision_config.embed_dim, *counts)

    return make
