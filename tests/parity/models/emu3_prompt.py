"""Prompts and grids as token ids, which ids may stand where, guided and truncated logits step by step, and resizing."""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mmblocks import Generation, GridFormat, Sampling, text
from mmblocks.generation.autoregressive import generate_ids
from mmblocks.generation.choosing import ModalSampling, Scores
from mmblocks.generation.guidance import Guidance, classifier_free
from mmblocks.layers.categorical import GREEDY, truncate
from mmblocks.layers.images.pixels import image_of, normalise
from mmblocks.models.emu3.prompts import (
    EMU3_GENERATION,
    EMU3_UNDERSTANDING,
    EMU35_SIZES,
    EMU35_TASKS,
    EMU35_UNCONDITIONAL,
    FIRST_SPECIAL,
    emu3_size,
    emu35_template,
    fill_template,
    read_document,
    spell,
    token_name,
)
from mmblocks.models.emu3.published_rules import Emu3PrefixGrammar, Emu35PublishedGrammar, emu35_published_guidance
from mmblocks.sequence.batches import Batch, BatchBuilder
from mmblocks.sequence.tokens import PADDING, TokenTable
from mmblocks.tokenizers import IBQ, Emu3VQ
from mmblocks.vocabulary import EMU3, EMU35
from mmblocks.vocabulary.code_ids import CodeIds
from mmblocks.vocabulary.grid_format import ANY_CODE, FINISHED
from tests.parity.cases import Case

TINY = {"channels": 32, "num_blocks": 1, "num_codes": 8, "code_dim": 4}


def run(case: Case) -> None:
    if "understanding" in case.data:
        check_emu3_text(case)
    elif "grids" in case.data:
        check_emu35_text(case)
    elif "constrained" in case.data:
        check_constraint(case)
        check_sizes(case)
    elif "in.image" in case.io:
        check_preprocessing(case)
    elif "out.after_cfg" in case.io:
        check_emu3_chain(case)
    else:
        check_emu35_processor(case)
        check_emu35_loop(case)


def check_preprocessing(case: Case) -> None:
    """From a photograph to what the encoder is given, and back to an image."""
    config = case.config
    if "min_pixels" in config:
        tokenizer: Any = Emu3VQ(**TINY, min_pixels=config["min_pixels"], max_pixels=config["max_pixels"])
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
    if "string_for_codes_0_to_n" in case.data:
        step = config["ds_factor"]
        height, width = (side // step for side in pixels.shape[1:])
        grid = torch.arange(height * width).view(height, width)
        assert spell(fill_template("<|IMAGE|>", images=[grid], format=EMU35), EMU35) == case.data["string_for_codes_0_to_n"]


def check_emu3_text(case: Case) -> None:
    """Strings in full; ids as far as they are no text, since the text tokenizer is a file of its own."""
    data, codes = case.data, torch.tensor(case.data["codes"])
    asked = fill_template(EMU3_UNDERSTANDING, question=data["text"], images=[codes])
    trained = fill_template(EMU3_GENERATION + "<|IMAGE|>", question=data["training"]["text"], images=[codes])
    for sample, wanted in ((asked, data["understanding"]), (trained, data["training"])):
        assert spell(sample) == wanted["string"]
        assert_same_specials(sample, wanted["input_ids"], EMU3)

    drawn = data["generation"]
    ((height, width),) = drawn["image_size"]
    across, down = map(int, drawn["ratio"].split(":"))
    assert emu3_size(across, down, area=drawn["image_area"]) == (height, width)
    sample = fill_template(EMU3_GENERATION, question=data["text"])
    head = EMU3.head(height, width)
    assert spell(sample) + spell_head(head, EMU3) == drawn["string"]
    assert drawn["input_ids"][-len(head) :] == head
    assert_same_specials(sample, drawn["input_ids"][: -len(head)], EMU3)

    parsed = data["parse_generated"]
    assert_same_pieces([piece for _, piece in read_document(parsed["doc"])], parsed["chunks"])


def check_emu35_text(case: Case) -> None:
    data = case.data
    grids = [torch.tensor(grid) for grid in data["grids"]]
    for grid, wanted, string in zip(grids, data["image_ids"], data["image_strings"], strict=True):
        assert EMU35.write(grid).ids.tolist() == wanted
        assert spell(fill_template("<|IMAGE|>", images=[grid], format=EMU35), EMU35) == string
    for prompt in data["prompts"]:
        images = grids if prompt["with_image"] else []
        template = emu35_template(prompt["task"], config=prompt.get("config_file"))
        conditional = fill_template(template, question=data["question"], images=images, format=EMU35)
        unconditional = fill_template(EMU35_UNCONDITIONAL, images=images, format=EMU35)
        assert spell(conditional, EMU35) == prompt["prompt"]
        assert spell(unconditional, EMU35) == prompt["unc_prompt"]
        assert_same_specials(conditional, prompt["prompt_ids"], EMU35)
        assert_same_specials(unconditional, prompt["unc_ids"], EMU35)
    for document in data["decode"]:
        check_document(document["doc"], document["chunks"])
    for sizes in data["smart_resize"]:
        image = Image.new("RGB", (sizes["width"], sizes["height"]))
        resized = IBQ(**TINY, image_area=sizes["area"]).preprocess(image)
        assert list(resized.shape[:0:-1]) == sizes["out_wh"]
    names = {"BOS": 203, "EOS": 204, "EOL": 200, "EOF": 201, "TMS": 202, "BSS": 100, "ESS": 101}
    names |= {"BOG": 60, "EOG": 61, "BOC": 50, "EOC": 51}
    spelled = {"PAD": "<|endoftext|>", "IMG": "<|image token|>", "BOI": "<|image start|>", "EOI": "<|image end|>"}
    spelled |= {name: f"<|extra_{number}|>" for name, number in names.items()}
    assert {name: token_name(number) for name, number in data["special_token_ids"].items()} == spelled
    sizes_by_aspect = {name: size and f"{size[0]}*{size[1]}" for name, size in EMU35_SIZES.items()}
    assert sizes_by_aspect == data["t2i_aspect_ratios_hxw_tokens"]
    for name, wanted in data["defaults"].items():  # ``config`` is the file for tasks without one of their own
        assert_same_settings(EMU35_TASKS["explore" if name == "config" else name], wanted)


def check_document(doc: str, chunks: list[list[Any]]) -> None:
    """Kinds, texts and codes. What stood for the tokenizer when the cases were made noted the last image that it was given, so that
    all images of a document may have the codes of the last: the others' are read here once more."""
    pieces = read_document(doc)
    assert [kind for kind, _ in pieces] == [kind for kind, _ in chunks]
    spelled = [image for image in re.findall(r"<\|image start\|>.*?<\|image end\|>", doc, re.DOTALL) if "visual token" in image]
    read = [
        torch.tensor([[int(n) for n in re.findall(r"token (\d+)", row)] for row in image.split("<|extra_200|>")])
        for image in spelled
    ]
    images = iter(read)
    for (kind, ours), (_, theirs) in zip(pieces, chunks, strict=True):
        if kind != "image":
            assert ours == theirs
            continue
        assert torch.equal(ours, next(images))
        codes = torch.tensor(theirs["codes"])
        assert any(torch.equal(codes.view(codes.shape[-2:]), wanted) for wanted in (ours, read[-1]))


def assert_same_settings(task: Any, wanted: dict[str, Any]) -> None:
    """Upstream's further ``top_k``, ``top_p`` and ``temperature``, for both modalities, keep all ids of either."""
    assert (task.guidance, task.image_area, task.max_tokens) == tuple(
        wanted[k] for k in ("cfg_scale", "image_area", "max_new_tokens")
    )
    for name, sampling in (("text", task.sampling.text), ("image", task.sampling.image)):
        got = {"top_k": sampling.top_k, "top_p": sampling.top_p, "temperature": sampling.temperature}
        assert got == {key: wanted[f"{name}_{key}"] for key in got}


def assert_same_pieces(got: Sequence[str | Tensor], wanted: Sequence[Any]) -> None:
    for ours, theirs in zip(got, wanted, strict=True):
        if isinstance(ours, Tensor):
            codes = torch.tensor(theirs["codes"])
            assert torch.equal(ours, codes[0] if codes.ndim == 3 else codes)
        else:
            assert ours == theirs


def spell_head(ids: list[int], format: GridFormat) -> str:
    size = dict(zip((*format.digits, format.times), "0123456789*", strict=True))
    return "".join(size[i] if i in size else token_name(i) for i in ids)


def assert_same_specials(sample: list[Any], ids: list[int], format: GridFormat) -> None:
    """Special tokens, images, and stretches of text stand in the same order."""
    ours: list[Any] = []
    for segment in sample:
        if isinstance(getattr(segment, "content", None), str):
            ours.append("text")
        else:
            ours += segment.content if hasattr(segment, "content") else [segment.grid.tolist()]
    theirs: list[Any] = []
    for piece in format.read(ids):
        if isinstance(piece, Tensor):
            theirs.append(piece.tolist())
        else:
            for is_text, run_ids in groupby(piece, key=lambda i: i < FIRST_SPECIAL):
                theirs += ["text"] if is_text else list(run_ids)
    assert [kind for kind, _ in groupby(map(str, ours))] == [kind for kind, _ in groupby(map(str, theirs))]


def check_constraint(case: Case) -> None:
    """Upstream's rule, quirks included, through ``Emu3PrefixGrammar``; from width 3 on ours equals it up to the stop id."""
    names = case.config["ids"]
    for table in case.data["constrained"]:
        size = (table["height"], table["width"])
        grammar = Emu3PrefixGrammar(size, eos=names["eos"], pad=names["pad"])
        wanted: list[int] = []
        for entry in table["allowed_run_length"]:
            wanted += [ANY_CODE] * entry[1] if isinstance(entry, list) else [entry]
        state, got = grammar.start(table["prompt_ids"]), []
        for _ in wanted:
            (first, stop), *_ = grammar.allowed(state)
            got.append(first if stop - first == 1 else ANY_CODE)
            state = grammar.advance(state, first)
        assert got == wanted, size
        if table["width"] > 2:
            ours = EMU3.expected(torch.arange(EMU3.length(*size) + 1), *size).tolist()
            assert ours == [*wanted[: len(ours) - 1], FINISHED]


def check_sizes(case: Case) -> None:
    for entry in case.data["generate_size"]:
        across, down = map(int, entry["ratio"].split(":"))
        assert emu3_size(across, down, area=entry["image_area"]) == tuple(entry["hw"])
    tokenizer = Emu3VQ(**TINY)
    for entry in case.data["smart_resize"]:
        height, width = entry["hw"]
        try:
            resized: Any = list(tokenizer.preprocess(Image.new("RGB", (width, height))).shape[1:])
        except ValueError:
            resized = "ValueError"
        assert resized == entry["out"], entry


def tiny_format(case: Case, published: GridFormat) -> GridFormat:
    """The published format with the case's small vocabulary."""
    names = case.config["ids"]
    first = names["visual"][0] if "visual" in names else names["BOV"]
    closing = (names["EOF"], names["EOI"]) if published.last_row_end else (names["EOI"],)
    return GridFormat(
        begin=names["BOI"],
        image=names["IMG"],
        row_end=names["EOL"],
        last_row_end=published.last_row_end,
        closing=closing,
        digits=published.digits,
        times=published.times,
        codes=CodeIds(sizes=(case.config["vocab"] - first,), first=first),
    )


def allowed_mask(allowed: Sequence[tuple[int, int]], vocabulary: int) -> Tensor:
    mask = torch.zeros(vocabulary, dtype=torch.bool)
    for first, stop in allowed:
        mask[first:stop] = True
    return mask


def check_emu3_chain(case: Case) -> None:
    """Guidance, constraint, truncation: each for itself, on the scores of every step; then the loop, which gives the same ids."""
    io, config = case.io, case.config
    names, form = config["ids"], tiny_format(case, EMU3)
    after_guidance = classifier_free(io["in.scores"].flatten(0, 1), io["in.uncond_scores"].flatten(0, 1), config["guidance_scale"])
    case.check("out.after_cfg", after_guidance.view_as(io["in.scores"]))
    grammars = [Emu3PrefixGrammar(tuple(size), eos=names["EOS"], pad=names["PAD"], format=form) for size in config["sizes_hw"]]
    states = [grammar.start(row) for grammar, row in zip(grammars, io["in.prompt_ids"].tolist(), strict=True)]
    constrained = after_guidance.view_as(io["in.scores"]).clone()
    for step, tokens in enumerate(io["out.tokens"].T.tolist()):
        for row, token in enumerate(tokens):
            constrained[step, row][~allowed_mask(grammars[row].allowed(states[row]), config["vocab"])] = float("-inf")
            states[row] = grammars[row].advance(states[row], token)
    case.check("out.after_constraint", constrained)
    truncated = truncate(constrained.flatten(0, 1), Sampling(top_k=config["top_k"])).view_as(constrained)
    case.check("out.after_topk", truncated)
    case.check("out.tokens", truncated.argmax(dim=-1).T)

    model = Replayed([io["in.scores"], io["in.uncond_scores"]])
    prompt = prompt_of(*io["in.prompt_ids"].tolist(), *io["in.negative_ids"].tolist())
    steps = list(
        generate_ids(
            model, prompt, grammars, Generation(max_tokens=len(io["in.scores"]), sampling=GREEDY, guidance=config["guidance_scale"])
        )
    )
    assert torch.equal(torch.stack([step.ids for step in steps], dim=1), io["out.tokens"])
    batch = len(io["in.prompt_ids"])
    for number, contexts in enumerate(case.data["uncond_context_per_step"]):
        read = model.contexts[number][batch:]
        assert read == contexts


def emu35_guidance(case: Case) -> tuple[Guidance, list[str]]:
    """What the class makes of its arguments, and the streams that it reads."""
    config = case.config
    guidance = emu35_published_guidance(
        config.get("unconditional_type", "no_text"),
        scale=config["guidance_scale"],
        image_scale=config.get("image_cfg_scale", 1.0),
        differential="Differential" in case.description["upstream_class"],
    )
    return guidance, ["in.scores", "in.uncond_scores", "in.full_uncond_scores"][: guidance.num_streams]


def emu35_sampling(config: dict[str, Any]) -> ModalSampling:
    """Upstream counts 0 as "all" in top-k; what a config leaves out has the class's defaults."""
    if not config.get("use_differential_sampling", False):
        return ModalSampling(text=Sampling(), image=Sampling())

    def of(kind: str, all_k: int, all_p: float) -> Sampling:
        top_k, top_p = config.get(f"{kind}_top_k", all_k), config.get(f"{kind}_top_p", all_p)
        temperature = config.get(f"{kind}_temperature", 1.0)
        return Sampling(temperature=temperature, top_k=top_k if top_k > 0 else None, top_p=top_p if top_p < 1 else None)

    return ModalSampling(text=of("text", 1024, 0.9), image=of("image", 10240, 1.0))


def emu35_grammar(case: Case, stop: tuple[int, ...] = ()) -> Emu35PublishedGrammar:
    config = case.config
    height, width = config.get("target_height"), config.get("target_width")
    return Emu35PublishedGrammar(
        size=None if height is None or width is None else (height, width),
        unconditional=case.data["unconditional_ids"],
        same_size=config.get("force_same_image_size", True),
        stop=stop,
        format=tiny_format(case, EMU35),
    )


def check_emu35_processor(case: Case) -> None:
    """Scores of all steps, id by id: guidance at codes alone, the grammar, then each modality's own truncation.

    The class knows no id that stops: what generates looks for it.
    """
    io, config = case.io, case.config
    guidance, streams = emu35_guidance(case)
    grammar, sampling = emu35_grammar(case), emu35_sampling(config)
    state = grammar.start(case.data["prompt_ids"])
    got = []
    for step, token in enumerate(io["out.tokens"].tolist()):
        described = grammar.describe(state)
        logits = torch.stack([io[name][step] for name in streams])[:, None]
        scores = guidance.combine(logits, step) if described.is_visual else logits[0]
        scores = scores.masked_fill(~allowed_mask(grammar.allowed(state), config["vocab"]), float("-inf"))
        got.append(truncate(scores, sampling.image if state.in_image else sampling.text)[0])
        entry = case.data["steps"][step]
        assert int((got[-1] > float("-inf")).sum()) == entry["n_allowed"]
        state = grammar.advance(state, token)
    case.check("out.scores", torch.stack(got))
    forced = torch.tensor([-1 if entry["forced_token"] is None else entry["forced_token"] for entry in case.data["steps"]])
    case.check("out.tokens", torch.where(forced < 0, torch.stack(got).argmax(dim=-1), forced))


def check_emu35_loop(case: Case) -> None:
    """The loop draws from the same distributions, and its other streams read what upstream's read."""
    io, data = case.io, case.data
    guidance, streams = emu35_guidance(case)
    sampling = emu35_sampling(case.config)
    tokens = io["out.tokens"].tolist()
    model = Replayed([io[name][:, None] for name in streams])
    prompts = [data["prompt_ids"], data["unconditional_ids"]]
    if len(streams) == 3:
        prompts.append(data["full_unconditional_ids"])

    def follow(scores: Scores) -> Tensor:
        (state,) = scores.states
        wanted = io["out.scores"][scores.step]
        got = torch.full_like(wanted, float("-inf"))
        kept = truncate(scores.logits, sampling.image if state.in_image else sampling.text)
        got[scores.first : scores.first + kept.shape[-1]] = kept[0]
        torch.testing.assert_close(got.softmax(-1), wanted.softmax(-1), atol=1e-5, rtol=1e-5)
        chosen = torch.full_like(scores.logits, float("-inf"))
        chosen[:, tokens[scores.step] - scores.first] = 0
        return chosen

    steps = list(
        generate_ids(
            model,
            prompt_of(*prompts),
            emu35_grammar(case, stop=(case.config["ids"]["EOS"],)),
            Generation(max_tokens=len(tokens), sampling=sampling, guidance=guidance, hooks=[follow]),
        )
    )
    assert [int(step.ids) for step in steps] == tokens[: len(steps)]
    for step, entry in zip(range(len(steps)), data["steps"], strict=False):
        states = [steps[number].before[0] for number in (step, max(step - 1, 0))]
        if tokens[step - 1] == case.config["ids"]["EOI"] and not states[1].in_image and step:
            break  # its other streams read the id that ends an image wherever text holds it; ours read no text
        if not entry["uncond_calls"] or not any(state.in_image for state in states):
            continue
        for stream, read in enumerate(model.contexts[step][1:]):
            if stream == 1 and states[1].num_images:
                continue  # upstream's third stream forgets the image before; see ``ThreeWay``
            calls = entry["uncond_calls"]
            assert any(read == call or (len(call) == 1 and read[-1:] == call) for call in calls), step  # one id with a cache


def prompt_of(*rows: list[int]) -> Batch:
    return BatchBuilder()([[text(row)] for row in rows], padding="left")


class Replayed(nn.Module):
    """A model whose logits are the case's, step by step and stream by stream; it notes which ids each row has read."""

    def __init__(self, streams: list[Tensor]) -> None:
        super().__init__()
        self.scores = torch.cat(streams, dim=1)  # (steps, rows of all streams, V)
        self.vocab_size = self.scores.shape[-1]
        self.contexts: list[list[list[int]]] = []
        self.inputs = {"text": lambda ids: ids[:, None].float()}
        self.outputs = {"text": self}
        self.trunk = self
        self.mask = None

    def embed(self, batch: Batch) -> Tensor:
        return batch.ids[..., None].float()

    def new_cache(self, batch: int, capacity: int) -> list[list[int]]:
        return [[] for _ in range(batch)]

    def forward(self, embeds: Tensor, table: TokenTable, cache: list[list[int]], mask: Any = None) -> Tensor:
        for row, (ids, document) in enumerate(zip(embeds[..., 0].long().tolist(), table.document.tolist(), strict=True)):
            cache[row] += [i for i, d in zip(ids, document, strict=True) if d != PADDING]
        step = len(self.contexts)
        self.contexts.append([list(row) for row in cache])
        rows = torch.arange(len(cache)) + step * len(cache)
        return rows[:, None, None].float().expand(-1, embeds.shape[1], -1)

    def logits(self, hidden: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        return self.scores.flatten(0, 1)[hidden[:, 0].long()][:, start:stop]
