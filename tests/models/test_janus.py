"""Janus against transformers: states, answers, guided images, preprocessing, and the folders of either layout."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmblocks import GREEDY, Generation, GridGrammar, TextGrammar, codes, image, text
from mmblocks.checkpoints.layouts.preprocessing import FILE
from mmblocks.models import Janus
from mmblocks.models.janus.prompts import JANUS_PRO_PROMPT, JANUS_PROMPT
from mmblocks.tokenizers import LlamaGenVQ
from mmblocks.vocabulary import raster_format
from tests.shared.published_repositories import REPOSITORIES

transformers = pytest.importorskip("transformers")

BOS, EOS, PAD, BEGIN, END, PLACE = 1, 2, 0, 50, 51, 52
NUM_CODES, SIDE = 24, 3
TEXT = {
    "model_type": "llama",
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
}
TOWER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 48,
    "patch_size": 16,
    "mlp_ratio": 2.5,
    "num_image_tokens": SIDE**2,
    "projection_dim": 32,
}
VQ = {
    "embed_dim": 4,
    "num_embeddings": NUM_CODES,
    "base_channels": 32,
    "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
    "latent_channels": 32,
    "projection_dim": 32,
    "image_token_embed_dim": 32,
}
VISION = {"image_size": 48, "dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 40}
SIZES: dict[str, Any] = {"vocab_size": 60, "dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 40}
SIZES |= {"num_codes": NUM_CODES, "code_dim": 4}


def oracle(**changes: Any):
    torch.manual_seed(0)
    config = transformers.JanusConfig(
        **{"text_config": TEXT, "vision_config": TOWER, "vq_config": VQ, "image_token_id": PLACE, "tie_word_embeddings": False}
        | changes
    )
    model = transformers.JanusForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape)
        parameter.data = noise * 0.2 if parameter.ndim > 1 else parameter.data + noise * (0.05 if "vqmodel" in name else 0.2)
    own = model.generation_config
    own.bos_token_id, own.eos_token_id, own.pad_token_id = BOS, EOS, PAD
    own.generation_kwargs = {"boi_token_id": BEGIN}
    return model


def folder_of(model, path: Path) -> Path:
    model.save_pretrained(path)
    processor = transformers.JanusImageProcessor(size={"height": 48, "width": 48}, image_mean=[0.5, 0.4, 0.3], image_std=[0.5] * 3)
    processor.save_pretrained(path)
    return path


def janus(**options: Any) -> Janus:
    torch.manual_seed(0)
    return Janus(**{**SIZES, "vision": VISION, **options}).eval()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    theirs = oracle()
    folder = folder_of(theirs, tmp_path_factory.mktemp("janus"))
    return theirs, Janus.from_pretrained(folder).eval(), folder


def prompt(pixels, *question: int):
    return [text([BOS, 7, BEGIN]), image(pixels), text([END, *question])]


def test_states_and_logits_are_transformers(both) -> None:
    theirs, ours, _ = both
    pixels = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[BOS, 7, BEGIN, *[PLACE] * SIDE**2, END, 5, 6]] * 2)
    mean, std = (torch.tensor(ours.config["vision"][name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        wanted = theirs(input_ids=ids, pixel_values=(pixels - mean) / std, output_hidden_states=True)
        batch = ours.batch_builder()([prompt(one, 5, 6) for one in pixels])
        hidden = ours.hidden(batch)
        torch.testing.assert_close(hidden, wanted.hidden_states[-1], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(ours.outputs["text"].logits(hidden), wanted.logits, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(ours.outputs["codes"].logits(hidden), theirs.model.generation_head(hidden), atol=1e-5, rtol=1e-5)
        numbers = torch.arange(NUM_CODES)
        embedded = theirs.prepare_embeddings_for_image_generation(numbers)
        torch.testing.assert_close(ours.inputs["codes"](numbers), embedded, atol=1e-6, rtol=1e-5)


def test_answers_are_transformers(both) -> None:
    theirs, ours, _ = both
    pixels = torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(2))
    ids = torch.tensor([[BOS, 7, BEGIN, *[PLACE] * SIDE**2, END, 5, 6]])
    mean, std = (torch.tensor(ours.config["vision"][name])[:, None, None] for name in ("mean", "std"))
    wanted = theirs.generate(
        input_ids=ids,
        pixel_values=((pixels - mean) / std)[None],
        attention_mask=torch.ones_like(ids),
        generation_mode="text",
        max_new_tokens=8,
        do_sample=False,
    )[0, ids.shape[1] :].tolist()
    options = Generation(max_tokens=8, sampling=GREEDY, head="text")
    made = [one.segment.content for one in ours.generate([prompt(pixels, 5, 6)], TextGrammar(60, stop=(EOS,)), options)]
    assert made == [[one for one in wanted if one != EOS]]
    assert len(set(wanted)) > 1


@pytest.mark.parametrize("sampling", ["published", "greedy"])
def test_guided_images_are_transformers(both, sampling: str) -> None:
    theirs, ours, _ = both
    words = [[BOS, 7, 9, 11, BEGIN], [BOS, 30, 31, 8, BEGIN]]
    ids = torch.tensor(words)
    options = Generation(head="text", guidance=JANUS_PROMPT.guidance, sampling=GREEDY)
    grammar = GridGrammar(raster_format(SIDE, SIDE, NUM_CODES), head="codes", input="codes")
    less = [[text(JANUS_PROMPT.unconditional(row, PAD))] for row in words]
    assert less[0][0].content == [BOS, PAD, PAD, PAD, BEGIN]
    if sampling == "published":  # the authors' own combination, state by state
        made = [one.segment.grid for one in ours.generate([[text(row)] for row in words], grammar, options, unconditional=less)]
        batch = ours.batch_builder()([[text(row), codes(grid, input="codes")] for row, grid in zip(words, made, strict=True)])
        without = ours.batch_builder()([[*row, codes(grid, input="codes")] for row, grid in zip(less, made, strict=True)])
        with torch.no_grad():
            seen, unseen = (ours.outputs["codes"].logits(ours.hidden(one)[:, 4:-1]) for one in (batch, without))
        assert torch.equal((unseen + 5 * (seen - unseen)).argmax(-1), torch.stack(made).flatten(1))
        return
    wanted = theirs.generate(
        inputs=ids, attention_mask=torch.ones_like(ids), generation_mode="image", do_sample=False, guidance_scale=5.0
    )
    found = ours.generate([[text(row)] for row in words], grammar, options, unconditional=less)
    assert torch.equal(torch.stack([one.segment.grid for one in found]).flatten(1), wanted)
    assert len(wanted.unique()) > 3


@pytest.mark.parametrize("size", [(48, 48), (37, 91), (200, 50), (101, 100), (300, 5), (5, 300), (333, 77)])
def test_images_are_prepared_as_transformers_does(both, size: tuple[int, int]) -> None:
    _, ours, folder = both
    generator = np.random.default_rng(0)
    picture = Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))
    processor = transformers.models.janus.image_processing_pil_janus.JanusImageProcessorPil.from_pretrained(folder)
    wanted = processor(picture, return_tensors="pt").pixel_values[0]
    encoder = ours.inputs["vision"].encoder
    mean, std = (torch.tensor(getattr(encoder, name))[:, None, None] for name in ("mean", "std"))
    found = (ours.inputs["vision"].preprocess(picture) - mean) / std
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_the_authors_round_the_shorter_side_down() -> None:
    rounded, down = (janus(vision={**VISION, "fit": fit}).inputs["vision"] for fit in ("pad-rounded", "pad"))
    picture = Image.new("RGB", (50, 31), "white")  # 29.76 rows of 48 pixels
    full = [int((one.preprocess(picture) == 1).all(dim=0).all(dim=1).sum()) for one in (rounded, down)]
    assert full == [30, 29]


def test_a_transformers_folder_comes_back_byte_for_byte(both, tmp_path) -> None:
    _, ours, folder = both
    assert ours.config["vision"]["fit"] == "pad-rounded" and ours.config["vision"]["mean"] == (0.5, 0.4, 0.3)
    ours.to_upstream(tmp_path, layout="janus-transformers")
    published, written = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert {name for name in published if name not in written} == {name for name in published if name.startswith("model.vqmodel.")}
    assert all(torch.equal(published[name], tensor) for name, tensor in written.items())
    again = Janus.from_pretrained(tmp_path)
    assert again.config == ours.config


def test_the_same_folder_holds_the_image_tokenizer(both) -> None:
    theirs, _, folder = both
    tokenizer = LlamaGenVQ.from_pretrained(folder).eval()
    numbers = torch.randint(NUM_CODES, (1, 24, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs.model.vqmodel.quantize.quant_state_dims = [24, 24]
        wanted = theirs.model.vqmodel.decode(numbers.flatten(1))
        found = tokenizer.decode(numbers)
    torch.testing.assert_close(found, ((wanted + 1) / 2).clamp(0, 1), atol=1e-4, rtol=1e-4)


def test_a_tied_head_is_one_tensor(tmp_path) -> None:
    theirs = oracle(tie_word_embeddings=True)
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    ours = Janus.from_pretrained(tmp_path)
    assert ours.outputs["text"].weight is ours.inputs["text"].weight


def test_the_authors_names(tmp_path) -> None:
    ours = janus()
    ours.to_upstream(tmp_path / "first", layout="janus")
    tensors = load_file(tmp_path / "first" / "model.safetensors")
    state = ours.state_dict()
    layer, theirs = "inputs.vision.encoder.tower.layers.1.", "vision_model.vision_tower.blocks.1."
    qkv = torch.cat([state[f"{layer}attention.{part}.weight"] for part in ("query", "key", "value")])
    assert torch.equal(tensors[f"{theirs}attn.qkv.weight"], qkv)
    assert torch.equal(tensors[f"{theirs}attn.proj.bias"], state[f"{layer}attention.out.bias"])
    assert tensors["vision_model.vision_tower.pos_embed"].shape == (1, 9, 16)
    for name, own in {
        "vision_model.vision_tower.patch_embed.proj.weight": "inputs.vision.encoder.tower.patch.weight",
        "vision_model.vision_tower.norm.bias": "inputs.vision.encoder.tower.norm.bias",
        f"{theirs}norm2.weight": f"{layer}mlp_norm.weight",
        "aligner.layers.0.weight": "inputs.vision.connector.layers.0.weight",
        "aligner.layers.2.bias": "inputs.vision.connector.layers.1.bias",
        "gen_aligner.layers.2.weight": "inputs.codes.connector.layers.1.weight",
        "gen_embed.weight": "inputs.codes.table.weight",
        "gen_head.output_mlp_projector.weight": "outputs.codes.project.weight",
        "gen_head.vision_head.bias": "outputs.codes.bias",
        "language_model.model.embed_tokens.weight": "inputs.text.weight",
        "language_model.model.layers.0.self_attn.k_proj.weight": "trunk.layers.0.attention.key.weight",
        "language_model.lm_head.weight": "outputs.text.weight",
    }.items():
        assert torch.equal(tensors[name], state[own]), name
    more = {
        "gen_vision_model.quantize.codebook_used": torch.zeros(4),
        "gen_vision_model.encoder.conv_in.weight": torch.zeros(2),
        "vision_model.vision_tower.attn_pool.latent": torch.zeros(1, 1, 16),
    }
    save_file({**tensors, **more}, tmp_path / "first" / "model.safetensors")
    again = Janus.from_pretrained(tmp_path / "first")
    again.to_upstream(tmp_path / "second")
    written = load_file(tmp_path / "second" / "model.safetensors")
    assert written.keys() == tensors.keys() and all(torch.equal(tensors[name], written[name]) for name in tensors)


LAYER, BLOCK = r"^model\.vision_model\.encoder\.layers\.(\d+)\.", r"vision_model.vision_tower.blocks.\1."
RENAMED = (
    (r"^model\.vision_model\.embeddings\.patch_embedding", "vision_model.vision_tower.patch_embed.proj"),
    (r"^model\.vision_model\.post_layernorm", "vision_model.vision_tower.norm"),
    (f"{LAYER}layer_norm", f"{BLOCK}norm"),
    (
        r"^model\.vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection_layer",
        r"vision_model.vision_tower.blocks.\1.attn.proj",
    ),
    (f"{LAYER}mlp", f"{BLOCK}mlp"),
    (r"^model\.aligner\.fc1", "aligner.layers.0"),
    (r"^model\.aligner\.hidden_layers\.0", "aligner.layers.2"),
    (r"^model\.generation_aligner\.fc1", "gen_aligner.layers.0"),
    (r"^model\.generation_aligner\.hidden_layers\.0", "gen_aligner.layers.2"),
    (r"^model\.generation_embeddings", "gen_embed"),
    (r"^model\.generation_head\.proj_out", "gen_head.output_mlp_projector"),
    (r"^model\.generation_head", "gen_head"),
    (r"^model\.vqmodel", "gen_vision_model"),
    (r"^model\.language_model", "language_model.model"),
    (r"^lm_head", "language_model.lm_head"),
)
"""transformers' names, and those of the authors, as transformers' own conversion has it the other way round."""


def test_the_same_weights_under_the_authors_names(both, tmp_path) -> None:
    _, ours, folder = both
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for pattern, renamed in RENAMED:
            name = re.sub(pattern, renamed, name)
        tensors[name] = tensor
    tower = "model.vision_model."
    tensors["vision_model.vision_tower.pos_embed"] = tensors.pop(f"{tower}embeddings.position_embedding.weight")[None]
    for layer in range(2):
        for kind in ("weight", "bias"):
            parts = [tensors.pop(f"{tower}encoder.layers.{layer}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            tensors[f"vision_model.vision_tower.blocks.{layer}.attn.qkv.{kind}"] = torch.cat(parts)
    assert not [name for name in tensors if name.startswith("model.")]
    janus().to_upstream(tmp_path, layout="janus")  # for the config
    save_file(tensors, tmp_path / "model.safetensors")
    again = Janus.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in ours.state_dict().items())


def test_the_authors_tower_is_siglip_large() -> None:
    config = REPOSITORIES["deepseek-ai/Janus-Pro-1B"][0]
    (layout,) = (layout for layout in Janus.layouts if layout.name == "janus")
    with torch.device("meta"):
        model = Janus(**layout.arguments(config))
    encoder = model.inputs["vision"].encoder
    assert sum(one.numel() for one in encoder.parameters()) == 303688704  # of SigLIP's 316 million, without its pooling
    assert encoder.grid == (24, 24) and len(encoder.tower.layers) == 24
    assert (model.config["norm_eps"], model.config["vocab_size"]) == (1e-6, 102400)


def test_the_authors_image_processor(tmp_path) -> None:
    model = janus()
    model.to_upstream(tmp_path, layout="janus")
    file = tmp_path / FILE
    written = json.loads(file.read_text())
    assert (written["image_processor_type"], written["image_size"], written["image_mean"]) == ("VLMImageProcessor", 48, [0.5] * 3)
    published = {**written, "background_color": [127, 127, 127], "processor_class": "VLChatProcessor", "image_mean": [0.25] * 3}
    file.write_text(json.dumps(published))
    assert Janus.from_pretrained(tmp_path).config["vision"]["mean"] == (0.25,) * 3
    file.write_text(json.dumps({**published, "min_size": 3}))
    with pytest.raises(ValueError, match="min_size is 3"):
        Janus.from_pretrained(tmp_path)


def test_a_batch_of_both_tasks_learns_and_saves(tmp_path) -> None:
    model = janus().train()
    answer = [*prompt(torch.rand(3, 48, 48), 5), text([8, 9, EOS], target="text")]
    drawn = [text([BOS, 7, BEGIN]), codes(torch.arange(9).view(3, 3), input="codes", target="codes")]
    losses = model(model.batch_builder()([answer, drawn])).losses
    (losses["text"] + losses["codes"]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval().save_pretrained(tmp_path)
    again, batch = Janus.from_pretrained(tmp_path), model.batch_builder()([answer, drawn])
    assert torch.equal(again(batch).hidden, model(batch).hidden)


def test_prompts_name_what_the_authors_code_has() -> None:
    assert (JANUS_PRO_PROMPT.user, JANUS_PRO_PROMPT.assistant) == ("<|User|>", "<|Assistant|>")
    assert (JANUS_PROMPT.user, JANUS_PROMPT.system) == ("User", JANUS_PRO_PROMPT.system)
    assert JANUS_PROMPT.system + JANUS_PROMPT.separators[0] == transformers.models.janus.processing_janus.DEFAULT_SYSTEM_PROMPT
