"""Chameleon against transformers; images with the guidance and the grammars of Chameleon and of Lumina-mGPT."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmblocks import GREEDY, Generation, GridGrammar, codes, text
from mmblocks.generation import ClassifierFree, ThreeWay
from mmblocks.models import Chameleon
from mmblocks.models.chameleon.prompts import (
    CHAMELEON_IDS,
    CHAMELEON_PROMPT,
    LUMINA_MGPT_PROMPT,
    lumina_mgpt_format,
    lumina_mgpt_sizes,
)
from mmblocks.sequence.segment_kinds import Codes, Text
from mmblocks.tokenizers import ChameleonVQ
from mmblocks.vocabulary import CodeIds, GridFormat
from mmblocks.vocabulary.code_ids import chameleon_code_ids

transformers = pytest.importorskip("transformers")

BEGIN, END, ROW, TURN, EOS, PLACE = 41, 40, 42, 43, 2, 59
VOCABULARY = {"<image>": PLACE, **{f"IMGIMG{chr(65 + (7 * number + 3) % 10)}Z": 4 + number for number in range(10)}}
"""Codes in another order than that of their ids."""

SIZES: dict[str, Any] = {"vocab_size": 60, "dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 40}
FORM = GridFormat(begin=BEGIN, closing=(END,), codes=chameleon_code_ids(VOCABULARY), fixed_size=(2, 3))
LUMINA = replace(FORM, fixed_size=None, row_end=ROW, last_row_end=True, sides=((2, 44), (4, 45), (6, 46)))


def oracle(**changes: Any):
    torch.manual_seed(0)
    vision = {
        "embed_dim": 8, "num_embeddings": 10, "latent_channels": 8, "resolution": 32, "base_channels": 32,
        "channel_multiplier": [1, 1], "num_res_blocks": 1,
    }  # fmt: skip
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.ChameleonConfig(
        **sizes, num_key_value_heads=2, vq_config=vision, vocabulary_map=VOCABULARY, pad_token_id=1, **changes
    )
    model = transformers.ChameleonForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape) * (0.05 if "vqmodel" in name else 0.2)
        parameter.data = noise if parameter.ndim > 1 and "_norm" not in name else parameter.data + noise
    return model


@pytest.fixture(scope="module", params=[False, True], ids=["7b", "34b"])
def both(request, tmp_path_factory):
    theirs, folder = oracle(swin_norm=request.param), tmp_path_factory.mktemp("chameleon")
    theirs.save_pretrained(folder)
    transformers.ChameleonImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return theirs, Chameleon.from_pretrained(folder).eval(), folder


def chameleon(**options: Any) -> Chameleon:
    torch.manual_seed(0)
    model = Chameleon(**{**SIZES, **options}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def logits_of(model: Chameleon, ids: list[int]) -> torch.Tensor:
    """Of the next id, with no cache and no grammar."""
    with torch.no_grad():
        return model.outputs["text"].logits(model.hidden(model.batch_builder()([[text(ids)]])))[0, -1]


def test_states_and_logits_are_transformers(both) -> None:
    theirs, ours, _ = both
    assert ours.config["post_norm"] == theirs.config.swin_norm
    ids = torch.randint(60, (2, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = theirs(input_ids=ids, output_hidden_states=True)
        hidden = ours.hidden(ours.batch_builder()([[text(row)] for row in ids.tolist()]))
        torch.testing.assert_close(hidden, wanted.hidden_states[-1], atol=2e-5, rtol=1e-4)
        logits = ours.outputs["text"].logits(hidden)
    seen = wanted.logits > torch.finfo(torch.float32).min
    assert not seen[..., 4:14].any() and seen.sum() == 2 * 17 * 50  # transformers' class writes no codes
    torch.testing.assert_close(logits[seen], wanted.logits[seen], atol=2e-5, rtol=1e-4)


def test_text_of_an_image_is_transformers(both) -> None:
    theirs, ours, folder = both
    tokenizer = ChameleonVQ.from_pretrained(folder).eval()
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        grid = tokenizer.encode(pixels).ids[0]
        theirs_ids = theirs.get_image_tokens((pixels - torch.tensor(tokenizer.mean)[0]) / tokenizer.std[0])[0]
    form = replace(FORM, fixed_size=(16, 16))
    assert torch.equal(form.codes.to_vocabulary(grid).flatten(), theirs_ids)
    assert len(grid.unique()) > 2

    ids = torch.tensor([[0, BEGIN, *[PLACE] * 256, END, 20, 21]])
    wanted = theirs.generate(
        input_ids=ids,
        pixel_values=(pixels - torch.tensor(tokenizer.mean)[0]) / tokenizer.std[0],
        attention_mask=torch.ones_like(ids),
        max_new_tokens=6,
        do_sample=False,
    )[0, ids.shape[1] :].tolist()
    grammar = GridGrammar(form, stop=(EOS,), vocab_size=60, structure_in_text=True)
    prompt = [text([0]), codes(grid, form), text([20, 21])]
    made = list(ours.generate([prompt], grammar, Generation(max_tokens=6, sampling=GREEDY)))
    assert [one.segment.content for one in made] == [[own for own in wanted if own != EOS]]


@pytest.mark.parametrize("size", [(32, 32), (37, 91), (200, 50), (33, 32), (7, 300)])
def test_images_are_prepared_as_transformers_does(both, size: tuple[int, int]) -> None:
    folder = both[2]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    processor = transformers.models.chameleon.image_processing_pil_chameleon.ChameleonImageProcessorPil.from_pretrained(folder)
    wanted = processor(picture, return_tensors="pt").pixel_values[0]
    tokenizer = ChameleonVQ.from_pretrained(folder)
    mean, std = (torch.tensor(getattr(tokenizer, name))[:, None, None] for name in ("mean", "std"))
    difference = ((tokenizer.preprocess(picture) - mean) / std - wanted).abs()
    longer = 32 * max(size) / min(size)  # rounded by the official code, cut off by transformers
    assert (difference.max() < 1e-5) == (round(longer) == int(longer))


def test_a_folder_comes_back_byte_for_byte(both, tmp_path) -> None:
    _, ours, folder = both
    ours.to_upstream(tmp_path)
    published, written = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert {name for name in published if name not in written} == {name for name in published if name.startswith("model.vqmodel.")}
    assert all(torch.equal(published[name], tensor) for name, tensor in written.items())
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["ChameleonForConditionalGeneration"]
    assert Chameleon.from_pretrained(tmp_path).config == ours.config


def test_lumina_mgpts_folder_is_read_under_its_own_name(both, tmp_path) -> None:
    _, ours, folder = both
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "chameleon_xllmx", "architectures": ["ChameleonXLLMXForConditionalGeneration"]}
    more = {"mask_image_logits": False, "z_loss_weight": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps({**config, **own, **more}))
    (tmp_path / "model.safetensors").write_bytes((Path(folder) / "model.safetensors").read_bytes())
    assert Chameleon.from_pretrained(tmp_path).config == ours.config
    assert ChameleonVQ.from_pretrained(tmp_path).config["num_codes"] == 10


PROMPT = replace(CHAMELEON_PROMPT, format=FORM, guidance=ThreeWay(scale=3.0, image_scale=1.2), turn_end=TURN)


def test_three_streams_guide_an_image() -> None:
    model, seen = chameleon(), torch.tensor([[1, 0, 9], [3, 3, 2]])
    prompt = [text([0, 20, 21]), codes(seen, FORM), text([22, TURN, BEGIN])]
    less = PROMPT.unconditional(prompt)
    grammar = GridGrammar(FORM, vocab_size=60)
    options = Generation(sampling=GREEDY, guidance=PROMPT.guidance)
    ((_, made),) = model.generate([prompt], grammar, options, unconditional=less)

    image = FORM.write(seen).ids.tolist()
    rows = [[0, 20, 21, *image, 22, TURN, BEGIN], [0, *image, BEGIN], [0, BEGIN]]
    wanted = []
    for _ in range(6):
        full, images, nothing = (logits_of(model, row) for row in rows)
        guided = nothing + 1.2 * (images - nothing) + 3.0 * (full - images)
        wanted.append(4 + int(guided[4:14].argmax()))
        rows = [[*row, wanted[-1]] for row in rows]
    assert FORM.codes.to_vocabulary(made.grid).flatten().tolist() == wanted
    assert len(set(wanted)) > 2


def test_text_and_images_take_turns() -> None:
    model = chameleon()
    grammar = GridGrammar(FORM, num_images=2, stop=(EOS,), vocab_size=60)
    prompts = [[text([0, 20, 21, TURN])], [text([0, 22, TURN, BEGIN])]]
    streams = [PROMPT.unconditional(prompt) for prompt in prompts]
    assert [[one.content for one in less] for less in streams[0]] == [[[0]], [[0]]]
    assert [[one.content for one in less] for less in streams[1]] == [[[0], [BEGIN]], [[0], [BEGIN]]]
    unconditional = [one[stream] for stream in range(2) for one in streams]
    opening = torch.tensor([20.0])

    def hook(scores):
        """Opens an image at the third id of a text."""
        if scores.step in (2, 14) and scores.states[0].mode == "text" and scores.first <= BEGIN:
            scores.logits[:, BEGIN - scores.first] += opening
        return scores.logits

    options = Generation(max_tokens=26, guidance=PROMPT.guidance, hooks=(hook,), generator=0, sampling=PROMPT.sampling)
    made = list(model.generate(prompts, grammar, options, unconditional=unconditional))
    images = [one for one in made if isinstance(one.segment, Codes)]
    assert {one.row for one in images} == {0, 1} and all(one.segment.grid.shape == (2, 3) for one in images)
    written = [own for one in made if isinstance(one.segment, Text) for own in one.segment.content]
    assert written and not any(4 <= own < 14 or own == END for own in written)  # codes stand in images alone


def test_lumina_mgpt_guides_from_the_third_id_of_an_image() -> None:
    model = chameleon()
    prompt = [text([0, 20, 21, TURN, BEGIN])]
    shown = replace(LUMINA_MGPT_PROMPT, format=LUMINA, guidance=ClassifierFree(scale=3.0, images_only=True, normalise=False))
    less = shown.unconditional(prompt)
    assert [one.content for one in less[0]] == [[BEGIN]]
    options = Generation(max_tokens=60, sampling=GREEDY, guidance=shown.guidance)
    ((_, made),) = model.generate([prompt], GridGrammar(LUMINA, vocab_size=60), options, unconditional=less)
    height, width = made.grid.shape

    rows, place = [[0, 20, 21, TURN, BEGIN], [BEGIN]], 0
    size = []
    while len(size) < 2:  # unguided
        size.append(44 + int(logits_of(model, rows[0])[44:47].argmax()))
        rows = [[*row, size[-1]] for row in rows]
    assert (height, width) == tuple(2 * (one - 43) for one in size)
    wanted = []
    for place in range(height * (width + 1)):
        conditional, unconditional = (logits_of(model, row) for row in rows)
        guided = unconditional + 3.0 * (conditional - unconditional)
        wanted.append(ROW if place % (width + 1) == width else 4 + int(guided[4:14].argmax()))
        rows = [[*row, wanted[-1]] for row in rows]
    assert LUMINA.write(made.grid).ids.tolist() == [BEGIN, *size, *wanted, END]


@pytest.mark.parametrize("size", [(2, 4), (6, 2)])
def test_lumina_mgpt_writes_an_image_of_a_size(size: tuple[int, int]) -> None:
    grammar = GridGrammar(LUMINA, size=size, vocab_size=60)
    ((_, made),) = chameleon().generate([[text([0, BEGIN])]], grammar, Generation(generator=0))
    assert made.grid.shape == size
    state = grammar.start([0, BEGIN])
    assert grammar.max_tokens(state) == 2 + LUMINA.length(*size)
    with pytest.raises(ValueError, match=r"accepted: sides of 2, 4, 6 tokens"):
        GridGrammar(LUMINA, size=(3, 2))


def test_a_prompt_that_begins_no_image_has_nothing_to_guide_it() -> None:
    with pytest.raises(ValueError, match="begins no image"):
        LUMINA_MGPT_PROMPT.unconditional([text([0, 20])])


def test_lumina_mgpts_ids_are_its_own() -> None:
    form = lumina_mgpt_format(CodeIds(sizes=(8192,), first=4))
    ids = form.write(torch.zeros(48, 32, dtype=torch.long)).ids.tolist()
    assert ids[:3] == [8197, 8804 + 24, 8804 + 16] and ids[3 + 32] == CHAMELEON_IDS["<reserved08799>"] == 8803
    assert len(ids) == 3 + 48 * 33 + 1 and ids[-2:] == [8803, 8196]
    assert 8828 in form.structure  # no text


@pytest.mark.parametrize("target", [512, 768, 1024])
def test_lumina_mgpts_sizes_can_all_be_written(target: int) -> None:
    known = dict(LUMINA_MGPT_PROMPT.format.sides)
    sizes = lumina_mgpt_sizes(target)
    assert (target, target) in sizes and len(set(sizes)) == len(sizes)
    assert all(side % 32 == 0 and side // 16 in known for size in sizes for side in size)
    assert all(height * width <= target**2 and max(height, width) <= 4 * min(height, width) for height, width in sizes)


def test_learns_and_saves(tmp_path) -> None:
    model = chameleon().train()
    sample = [text([0, 20, 21]), codes(torch.tensor([[1, 0, 9], [3, 3, 2]]), FORM, target="text", structure=True)]
    batch = model.batch_builder()([sample])
    model(batch).losses["text"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval().save_pretrained(tmp_path)
    assert torch.equal(Chameleon.from_pretrained(tmp_path)(batch).hidden, model(batch).hidden)
