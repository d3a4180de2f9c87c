"""Image grids as token ids, which ids may stand where, and resizing. Sampling traces have no adapter yet."""

import pytest
import torch
from PIL import Image

from mmblocks import EMU3, EMU35, IBQ, Emu3VQ
from mmblocks.grid_format import ANY_CODE, FINISHED
from mmblocks.layers.pixels import image_of, normalise
from tests.parity.cases import Case


def run(case: Case) -> None:
    name = case.description["case"]
    if name.startswith("emu3_serialise"):
        check_emu3_text(case)
    elif name.startswith("emu35_serialise"):
        check_emu35_text(case)
    elif "constrained" in case.data:
        check_constraint(case)
    elif "in.image" in case.io:
        check_preprocessing(case)
    else:
        pytest.skip(f"emu3_prompt/{name}: sampling traces have no adapter yet")


TINY = {"channels": 32, "num_blocks": 1, "num_codes": 8, "code_dim": 4}


def check_preprocessing(case: Case) -> None:
    """From a photograph to what the encoder is given, and back to an image."""
    config = case.config
    if "min_pixels" in config:
        tokenizer = Emu3VQ(**TINY, min_pixels=config["min_pixels"], max_pixels=config["max_pixels"])
    else:
        tokenizer = IBQ(**TINY, image_area=config["image_area"])
    pixels = tokenizer.preprocess(Image.fromarray(case.io["in.image"].numpy()))
    normalised = normalise(pixels, tokenizer.mean, tokenizer.std)
    case.check("out.pixel_values", normalised[None])
    if "out.postprocessed" in case.io:
        levels = torch.frombuffer(bytearray(image_of(pixels).tobytes()), dtype=torch.uint8).view(*pixels.shape[1:], 3)
        case.leave_out("out.postprocessed")
        difference = levels.int() - case.io["out.postprocessed"].int()
        assert difference.abs().max() <= 1  # the case allows one level: (x + 1) / 2 * 255 rounds down at the edges


def check_emu3_text(case: Case) -> None:
    codes = torch.tensor(case.data["codes"])
    ids = EMU3.write(codes).ids.tolist()
    for sample in (case.data["understanding"], case.data["training"]):
        assert contains(sample["input_ids"], ids)
        before, grid, *_ = EMU3.read(sample["input_ids"])
        assert torch.equal(torch.as_tensor(grid), codes)
        assert before == sample["input_ids"][: len(before)]
    generation = case.data["generation"]
    ((height, width),) = generation["image_size"]
    assert generation["input_ids"][-len(str(height) + str(width)) - 3 :] == [
        EMU3.begin, *EMU3.size_ids(height, width), EMU3.image,
    ]  # fmt: skip


def check_emu35_text(case: Case) -> None:
    for grid, wanted in zip(case.data["grids"], case.data["image_ids"], strict=True):
        ids = EMU35.write(torch.tensor(grid)).ids.tolist()
        assert ids == wanted
        for prompt in case.data["prompts"]:
            if prompt["with_image"]:
                assert contains(prompt["prompt_ids"], ids)


def check_constraint(case: Case) -> None:
    """Upstream's end-of-text id behind the image is the caller's stop id, not the format's."""
    for table in case.data["constrained"]:
        height, width = table["height"], table["width"]
        offset = torch.arange(EMU3.length(height, width) + 1)
        got = EMU3.expected(offset, height, width).tolist()
        wanted: list[int] = []
        for run in table["allowed_run_length"]:
            wanted += [ANY_CODE] * run[1] if isinstance(run, list) else [run]
        assert wanted[-1] == case.config["ids"]["eos"]
        assert got == [*wanted[:-1], FINISHED]


def contains(ids: list[int], part: list[int]) -> bool:
    return any(ids[i : i + len(part)] == part for i in range(len(ids) - len(part) + 1))
