"""Published configs of embeddings: followed entry by entry, refused where they say something else, and written back."""

import json
from collections.abc import Callable

import pytest
import torch
from PIL import Image

from mmblocks import Block, TextEmbedding
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.embedders.eve1 import EVE1PatchEmbedding
from mmblocks.embedders.eve1_alignment import EVE1PatchAlignment
from mmblocks.embedders.eve2 import EVE2PatchEmbedding
from mmblocks.embedders.fuyu import FuyuPatchEmbedding
from mmblocks.embedders.linear_patches import LinearPatchEmbedding
from mmblocks.embedders.neo import NEOPatchEmbedding
from mmblocks.layers.attention.gated_cross_attention import GatedCrossAttention
from mmblocks.layers.images.grid_positions import SinCosPositions
from mmblocks.layers.soft_codes import SoftCodeEmbedding
from mmblocks.tokenizers.towers.attention_projection import AttentionProjection
from tests.shared.written_back import check_written_back

EVE1 = {"dim": 12, "hidden_dim": 16, "patch_size": 4, "image_size": 32, "teacher_image_size": 16, "teacher_patch_size": 4}
EVE2 = {"dim": 12, "hidden_dim": 8, "patch_size": 4, "merge_size": 3, "max_size": 64}
NEO = {"dim": 12, "hidden_dim": 8, "patch_size": 2, "rope_theta": 100.0, "min_pixels": 64, "max_pixels": 256}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.4, 0.3)}


def latents_embedding(interpolation: float = 1.0) -> LinearPatchEmbedding:
    positions = SinCosPositions(dim=12, table_size=6, base_size=64, interpolation=interpolation)
    return LinearPatchEmbedding(dim=12, patch_size=2, channels=5, positions=positions)


WRITTEN: list[tuple[str, Callable[[], Block]]] = [
    ("eve1", lambda: EVE1PatchEmbedding(**EVE1, projector_layers=3, merge_size=2, **HALF)),
    ("eve1", lambda: EVE1PatchAlignment(dim=12, num_layers=8)),
    ("eve1-layer", lambda: EVE1PatchAlignment(dim=12, num_layers=6, layer_step=2, teacher_dim=16, num_heads=4)),
    ("eve2", lambda: EVE2PatchEmbedding(**EVE2, **HALF)),
    ("neo", lambda: NEOPatchEmbedding(**NEO)),
    ("fuyu", lambda: FuyuPatchEmbedding(dim=12, patch_size=4, max_height=24, max_width=40, **HALF)),
    ("fuyu-hub", lambda: FuyuPatchEmbedding(dim=12)),
    ("omnigen", lambda: latents_embedding(interpolation=2.0)),
    ("omnigen-input", latents_embedding),
    ("omnigen-diffusers", latents_embedding),
    ("omnigen-diffusers-input", latents_embedding),
    ("unitok-in", lambda: AttentionProjection(in_dim=32, out_dim=8, num_heads=4)),
    ("unitok-out", lambda: AttentionProjection(in_dim=8, out_dim=32, num_heads=4)),
    ("flamingo", lambda: GatedCrossAttention(dim=8, context_dim=6, num_heads=3, head_dim=4, mlp_dim=10, only_last=False)),
]


@pytest.mark.parametrize(("layout", "build"), WRITTEN, ids=[name for name, _ in WRITTEN])
def test_what_is_written_for_the_authors_is_read_again(layout, build, tmp_path) -> None:
    torch.manual_seed(0)
    block = build()
    options = {"positions": block.config["positions"]} if "positions" in block.config else {}
    again = check_written_back(block, layout, tmp_path, **options)
    assert {name: again.config[name] for name in block.config} == block.config
    if options:
        read = type(block).from_pretrained(tmp_path / "first", layout=layout).config["positions"]
        assert read.config == options["positions"].config


def test_soft_codes_are_read_with_the_table_that_they_mix(tmp_path) -> None:
    text = TextEmbedding(vocab_size=40, dim=8)
    check_written_back(SoftCodeEmbedding(num_codes=20, code_dim=6, table=text, first=4), "orthus", tmp_path, table=text)


@pytest.mark.parametrize(
    ("block", "layout", "message"),
    [
        (lambda: EVE1PatchEmbedding(**EVE1, num_heads=4), "eve1", "num_heads is 4; accepted in this layout: 8"),
        (lambda: EVE1PatchAlignment(dim=12, num_layers=8, layer_step=2), "eve1", "layer_step is 2"),
        (lambda: latents_embedding(2.0), "omnigen-diffusers", r"interpolation is 2\.0"),
        (lambda: LinearPatchEmbedding(dim=12, patch_size=2), "omnigen", "positions is NoneType"),
        (lambda: AttentionProjection(in_dim=32, out_dim=8, num_heads=2), "unitok-in", "num_heads is 2"),
        (lambda: AttentionProjection(in_dim=32, out_dim=8, num_heads=4, causal=True), "unitok-in", "causal is True"),
        (lambda: SoftCodeEmbedding(num_codes=20, code_dim=6, table=TextEmbedding(vocab_size=40, dim=8)), "orthus", "first is 0"),
    ],
)
def test_what_their_config_cannot_say_is_not_written(block, layout, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        block().to_upstream(tmp_path / "x", layout=layout)


def layout_of(cls: type[Block], name: str) -> Layout:
    (layout,) = (layout for layout in cls.layouts if layout.name == name)
    return layout


TOWERS = {"mm_vision_tower": "openai/eve-patch14-anypixel-672", "mm_vision_tower_clip": "openai/clip-vit-large-patch14-336"}
EVE1_CONFIG = {"hidden_size": 12, "mm_hidden_size": 16, "mm_projector_type": "mlp2x_gelu", **TOWERS}
EVE2_CONFIG = {"hidden_size": 12, "mm_hidden_size": 8, "mm_vision_tower": "openai/eve-anyratio-res800-patch16"}
NEO_CONFIG = {"vision_config": {"hidden_size": 8}, "llm_config": {"hidden_size": 12}}
ORTHUS = {"vq_config": {"num_embeddings": 20, "embed_dim": 6}}

REFUSED = [
    (EVE1PatchEmbedding, "eve1", EVE1_CONFIG, "model_type", "eve-llama3"),
    (EVE1PatchEmbedding, "eve1", EVE1_CONFIG, "architectures", ["LlavaLlamaForCausalLM"]),
    (EVE1PatchEmbedding, "eve1", EVE1_CONFIG, "num_heads", 4),
    (EVE1PatchAlignment, "eve1", EVE1_CONFIG | {"requires_cliploss": True, "num_hidden_layers": 8}, "layer_rate", 2),
    (EVE1PatchAlignment, "eve1-layer", {"llm_size": 12}, "layer_index", [4]),
    (EVE2PatchEmbedding, "eve2", EVE2_CONFIG, "model_type", "eve"),
    (EVE2PatchEmbedding, "eve2", EVE2_CONFIG, "mm_conv_bias", False),
    (NEOPatchEmbedding, "neo", NEO_CONFIG, "vision_config.num_channels", 4),
    (NEOPatchEmbedding, "neo", NEO_CONFIG, "vision_config.model_type", "intern_vit_6b"),
    (NEOPatchEmbedding, "neo", NEO_CONFIG, "downsample_ratio", 0.25),
    (NEOPatchEmbedding, "neo", NEO_CONFIG, "architectures", ["InternVLChatModel"]),
    (FuyuPatchEmbedding, "fuyu", {}, "num_channels", 1),
    (FuyuPatchEmbedding, "fuyu", {}, "model_type", "persimmon"),
    (LinearPatchEmbedding, "omnigen-diffusers", {}, "_class_name", "SD3Transformer2DModel"),
    (LinearPatchEmbedding, "omnigen", {}, "model_type", "llama"),
    (LinearPatchEmbedding, "omnigen", {}, "pe_theta", 100.0),
    (AttentionProjection, "unitok-in", {}, "quant_proj", "linear"),
    (AttentionProjection, "unitok-in", {}, "model", "vitamin_xlarge"),
    (AttentionProjection, "unitok-in", {}, "attn_heads", 2),
    (GatedCrossAttention, "flamingo", {"dim": 8}, "qk_norm", True),
    (SoftCodeEmbedding, "orthus", ORTHUS, "vocabulary_map.IMGIMGAZ", 5),
    (SoftCodeEmbedding, "orthus", ORTHUS, "model_type", "llama"),
]


@pytest.mark.parametrize(("cls", "name", "config", "entry", "value"), REFUSED, ids=[f"{r[0].__name__}-{r[3]}" for r in REFUSED])
def test_entries_that_say_something_else_are_refused(cls, name, config, entry, value) -> None:
    layout = layout_of(cls, name)
    layout.arguments(config)
    *inside, last = entry.split(".")
    changed = config | ({inside[0]: {**config.get(inside[0], {}), last: value}} if inside else {last: value})
    with pytest.raises(ValueError, match=inside[0] if inside == ["vocabulary_map"] else last):
        layout.arguments(changed)


FOLLOWED = [
    (NEOPatchEmbedding, "neo", NEO_CONFIG, "vision_config.min_pixels", 64, "min_pixels", 64),
    (NEOPatchEmbedding, "neo", {"hidden_size": 8}, "downsample_ratio", [0.25], "merge_size", 4),
    (FuyuPatchEmbedding, "fuyu", {"hidden_size": 7}, "text_config.hidden_size", 12, "dim", 12),
    (AttentionProjection, "unitok-in", {}, "model", "vitamin_base", "in_dim", 768),
    (GatedCrossAttention, "flamingo", {"dim": 8}, "ff_mult", 2, "mlp_dim", 16),
    (GatedCrossAttention, "flamingo", {"dim": 8}, "only_attend_immediate_media", False, "only_last", False),
]


@pytest.mark.parametrize(
    ("cls", "name", "config", "entry", "value", "argument", "wanted"), FOLLOWED, ids=[f"{f[0].__name__}-{f[3]}" for f in FOLLOWED]
)
def test_entries_are_followed(cls, name, config, entry, value, argument, wanted) -> None:
    *inside, last = entry.split(".")
    changed = config | ({inside[0]: {**config.get(inside[0], {}), last: value}} if inside else {last: value})
    assert layout_of(cls, name).arguments(changed)[argument] == wanted


@pytest.mark.parametrize("interpolation", [1.0, 2.0])
def test_omnigens_places_are_as_close_together_as_its_config_says(interpolation) -> None:
    arguments = layout_of(LinearPatchEmbedding, "omnigen").arguments({"hidden_size": 12, "pe_interpolation": interpolation})
    assert arguments["positions"].step == interpolation * 3


@pytest.mark.parametrize(("whole", "diff"), [(True, False), (False, True)])
def test_fuyus_config_as_transformers_writes_it(whole, diff) -> None:
    from transformers import FuyuConfig

    config = FuyuConfig(text_config={"hidden_size": 12, "num_attention_heads": 2}, patch_size=6)
    written = json.loads(json.dumps(config.to_dict() if whole else config.to_diff_dict()))
    assert layout_of(FuyuPatchEmbedding, "fuyu").arguments(written) == {"dim": 12, "patch_size": 6}


def prepared(block: Block, layout: str, folder, **changes) -> Block:
    """Written, and read again with some entries of the image processor changed."""
    block.to_upstream(folder, layout=layout)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return type(block).from_pretrained(folder, layout=layout)


@pytest.mark.parametrize(
    ("build", "layout", "changes", "wanted"),
    [
        (lambda: FuyuPatchEmbedding(dim=12, patch_size=4), "fuyu", {"size": {"height": 8, "width": 12}}, {"max_height": 8}),
        (
            lambda: FuyuPatchEmbedding(dim=12, patch_size=4),
            "fuyu",
            {"size": None, "target_height": 8, "target_width": 12},
            {"max_width": 12},
        ),
        (lambda: FuyuPatchEmbedding(dim=12, patch_size=4), "fuyu", {"image_mean": 0.4}, {"mean": (0.4, 0.4, 0.4)}),
        (lambda: EVE1PatchEmbedding(**EVE1), "eve1", {"image_size": 64}, {"image_size": 64}),
        (lambda: EVE2PatchEmbedding(**EVE2), "eve2", {"max_size": 128, "image_std": [1, 1, 1]}, {"max_size": 128}),
    ],
)
def test_images_are_prepared_as_the_folder_says(build, layout, changes, wanted, tmp_path) -> None:
    block = prepared(build(), layout, tmp_path, **changes)
    assert wanted.items() <= block.config.items()
    pixels = block.preprocess(Image.effect_noise((90, 60), 90).convert("RGB"))
    assert not torch.equal(block([pixels]).embeds, build()([pixels]).embeds)


@pytest.mark.parametrize(
    ("build", "layout", "entry", "value"),
    [
        (lambda: FuyuPatchEmbedding(dim=12, patch_size=4), "fuyu", "padding_value", 0.0),
        (lambda: FuyuPatchEmbedding(dim=12, patch_size=4), "fuyu", "patch_size", {"height": 5, "width": 5}),
        (lambda: FuyuPatchEmbedding(dim=12, patch_size=4), "fuyu", "resample", 3),
        (lambda: FuyuPatchEmbedding(dim=12, patch_size=4), "fuyu", "do_resize", False),
        (lambda: FuyuPatchEmbedding(dim=12, patch_size=4), "fuyu", "target_height", 8),
        (lambda: EVE1PatchEmbedding(**EVE1), "eve1", "do_center_crop", True),
        (lambda: EVE2PatchEmbedding(**EVE2), "eve2", "do_resize", None),
        (lambda: EVE2PatchEmbedding(**EVE2), "eve2", "image_processor_type", "SiglipImageProcessor"),
    ],
)
def test_other_ways_of_preparing_images_are_refused(build, layout, entry, value, tmp_path) -> None:
    with pytest.raises(ValueError, match="height" if isinstance(value, dict) else entry):
        prepared(build(), layout, tmp_path, **{entry: value})


@pytest.mark.parametrize("mean", [0.2, [0.1, 0.3, 0.5]])
def test_fuyu_normalises_as_transformers(mean, tmp_path) -> None:
    import transformers

    published = getattr(transformers, "FuyuImageProcessorPil", None) or transformers.FuyuImageProcessor
    entries = {"image_mean": mean, "image_std": 0.25, "size": {"height": 24, "width": 40}, "patch_size": {"height": 4, "width": 4}}
    theirs = published(**entries)
    part = prepared(FuyuPatchEmbedding(dim=12, patch_size=4), "fuyu", tmp_path, **json.loads(theirs.to_json_string()))
    photo = Image.effect_noise((39, 23), 90).convert("RGB")
    wanted = torch.as_tensor(theirs.preprocess(photo, return_tensors="pt")["images"][0][0])[:, :24, :40]
    pixels = part.preprocess(photo)
    mean, std = (torch.tensor(values)[:, None, None] for values in (part.mean, part.std))
    torch.testing.assert_close((pixels - mean) / std, wanted[:, : pixels.shape[1], : pixels.shape[2]].float(), atol=1e-5, rtol=1e-4)


def test_transformers_reads_fuyus_config(tmp_path) -> None:
    from transformers import AutoConfig

    FuyuPatchEmbedding(dim=12, patch_size=6).to_upstream(tmp_path, layout="fuyu")
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.text_config.hidden_size, config.patch_size, config.num_channels) == (12, 6, 3)


def test_an_image_processor_that_is_no_preset_is_not_eves(tmp_path) -> None:
    part = EVE2PatchEmbedding(**EVE2)
    part.to_upstream(tmp_path, layout="eve2")
    plain = {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": 336}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(plain))
    assert EVE2PatchEmbedding.from_pretrained(tmp_path).config == part.config
