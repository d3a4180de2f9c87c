"""Emu3.5's prompts and its way of constraining itself, next to small references written from its rules."""

from dataclasses import dataclass, field

import pytest
import torch

from mmblocks import Generation, Sampling
from mmblocks.generation.guidance import ClassifierFree, ThreeWay
from mmblocks.layers.categorical import truncate
from mmblocks.models.emu3.prompts import EMU35_TASKS, EMU35_UNCONDITIONAL, emu35_template, fill_template, read_document, spell
from mmblocks.models.emu3.published_rules import Emu35PublishedGrammar, emu35_published_guidance
from mmblocks.vocabulary.code_ids import CodeIds
from mmblocks.vocabulary.grid_format import EMU35, GridFormat

ROW, BEGIN, IMAGE, END, FIRST, VOCABULARY = 30, 31, 32, 33, 34, 60
ZERO, TIMES = 15, 9
FORMAT = GridFormat(
    begin=BEGIN,
    image=IMAGE,
    row_end=ROW,
    last_row_end=False,
    closing=(END,),
    digits=tuple(range(ZERO, ZERO + 10)),
    times=TIMES,
    codes=CodeIds(sizes=(VOCABULARY - FIRST,), first=FIRST),
)
GRIDS = [torch.tensor([[3, 1, 4, 1]]), torch.tensor([[5, 9], [2, 6], [5, 3]])]


def image_ids(height: int, width: int) -> list[int]:
    return FORMAT.write(torch.arange(height * width).view(height, width) % 20).ids.tolist()


def test_a_tasks_settings_are_options_of_a_generation() -> None:
    task = EMU35_TASKS["t2i"]
    guidance = ClassifierFree(scale=5.0, images_only=True)
    assert task.options == Generation(max_tokens=5120, sampling=task.sampling, guidance=guidance)


@pytest.mark.parametrize("num_images", [0, 1, 2, 3])
@pytest.mark.parametrize("task", list(EMU35_TASKS))
@pytest.mark.parametrize("config", [None, "config", "t2i", "x2i", "howto", "story"])
def test_prompts_of_every_task_and_file(config, task, num_images) -> None:
    """The strings as the config files build them, images one after the other in the only place."""
    images = [*GRIDS, GRIDS[0]][:num_images]
    place = "".join(spell(fill_template("<|IMAGE|>", images=[grid], format=EMU35), EMU35) for grid in images)
    file = config or task
    extra = " Please generate a response with interleaved text and images." if (file, task) == ("howto", "howto") else ""
    content = place + "Où? {1}" if file == "x2i" else "Où? {1}" + place
    head, tail = "<|extra_203|>You are a helpful assistant", " ASSISTANT: <|extra_100|>"

    filled = fill_template(emu35_template(task.upper(), config=config), question="Où? {1}", images=images, format=EMU35)
    assert spell(filled, EMU35) == f"{head} for {task} task.{extra} USER: {content}{tail}"
    assert spell(fill_template(EMU35_UNCONDITIONAL, images=images, format=EMU35), EMU35) == f"{head}. USER: {place}{tail}"


@pytest.mark.unchecked
def test_what_emu35_has_no_prompt_for_is_refused() -> None:
    with pytest.raises(ValueError, match="task is 'draw'; accepted: t2i, x2i, howto, story, explore, vla"):
        emu35_template("draw")
    with pytest.raises(ValueError, match="config is 'vla'; accepted: None, config, t2i, x2i, howto, story"):
        emu35_template("vla", config="vla")
    assert EMU35_TASKS["vla"] == EMU35_TASKS["explore"] == EMU35_TASKS["story"]


def test_documents_are_read_as_upstream_reads_them() -> None:
    image = spell(fill_template("<|IMAGE|>", images=[GRIDS[1]], format=EMU35), EMU35)
    ragged = "<|image start|>1*2<|image token|><|visual token 000001|><|extra_200|><|image end|>"
    ragged = ragged.replace("<|extra_200|>", "<|extra_200|><|visual token 000002|><|visual token 000003|>")
    document = (
        f"<|extra_60|>plan <|im_end|><|extra_61|>  <|extra_50|>a{image}b<|extra_51|>x<|extra_60|>y{image}{ragged}"
        "<|image start|>1*1<|image token|><|image end|> \n<|extra_51|>z<|extra_101|>lost<|image start|>2*3<|image token|><|vis"
    )
    kinds = [(kind, piece if isinstance(piece, str) else piece.tolist()) for kind, piece in read_document(document)]
    codes = GRIDS[1].tolist()
    assert kinds == [("global_cot", "plan <|im_end|>"), ("image", codes), ("text", "x<|extra_60|>y"), ("image", codes)]
    assert read_document("a <|extra_204|>") == [("text", "a ")]


@dataclass
class Reference:
    """What upstream's class makes of scores, from its rules: who is in an image, which ids may come, guidance, truncation."""

    scale: float
    image_scale: float
    three_way: bool
    differential: bool
    sampling: dict[str, Sampling]
    unconditional: list[int]
    target: tuple[int, int] | None
    same_size: bool
    size: tuple[int, int] | None = field(init=False)
    in_image: bool = False

    def __post_init__(self) -> None:
        self.size = self.target
        if IMAGE in self.unconditional and not (self.target and self.same_size):
            self.size = self.last_size(self.unconditional)

    @staticmethod
    def last_size(ids: list[int]) -> tuple[int, int]:
        begin, image = (max(place for place, one in enumerate(ids) if one == mark) for mark in (BEGIN, IMAGE))
        height, width = "".join("*" if i == TIMES else str(i - ZERO) for i in ids[begin + 1 : image]).split("*")
        return int(height), int(width)

    def __call__(self, ids: list[int], streams: torch.Tensor) -> torch.Tensor:
        if ids[-1] in (BEGIN, END):
            self.in_image = ids[-1] == BEGIN
        scores, allowed = streams[0].clone(), range(FIRST)
        if self.in_image:
            after = ids[max(place for place, one in enumerate(ids) if one == BEGIN) :]
            allowed, guided = self.in_an_image(after, ids)
            scores = self.guided(streams) if guided else scores
        mask = torch.full_like(scores, float("-inf"))
        mask[list(allowed)] = 0
        kind = "image" if self.in_image else "text"
        return self.truncated(scores + mask, self.sampling[kind]) if self.differential else scores + mask

    def in_an_image(self, after: list[int], ids: list[int]) -> tuple[range, bool]:
        if IMAGE not in after:
            return self.of_a_size(len(after)), False
        if after[-1] == IMAGE and self.size is None:
            self.size = self.last_size(ids)
        height, width = self.size or (0, 0)
        place = len(after) - after.index(IMAGE)
        if place == height * (width + 1):
            return range(END, END + 1), False
        return (range(ROW, ROW + 1), False) if place % (width + 1) == 0 else (range(FIRST, VOCABULARY), True)

    def of_a_size(self, place: int) -> range:
        if self.size is not None:
            spelled = [TIMES if c == "*" else ZERO + int(c) for c in "{}*{}".format(*self.size)] + [IMAGE]
            return range(spelled[place - 1], spelled[place - 1] + 1)
        tens, ones = range(ZERO + 1, ZERO + 10), range(ZERO, ZERO + 10)
        return [tens, ones, range(TIMES, TIMES + 1), tens, ones, range(IMAGE, IMAGE + 1)][place - 1]

    def guided(self, streams: torch.Tensor) -> torch.Tensor:
        logs = streams.log_softmax(-1)
        if not self.three_way:
            return logs[1] + self.scale * (logs[0] - logs[1])
        image_scale = 1.0 if self.differential else self.image_scale
        return logs[2] + image_scale * (logs[1] - logs[2]) + self.scale * (logs[0] - logs[1])

    @staticmethod
    def truncated(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
        scores = scores / sampling.temperature
        if sampling.top_k and sampling.top_k < len(scores):
            scores[scores < scores.topk(sampling.top_k).values[-1]] = float("-inf")
        if sampling.top_p is not None:
            ordered, places = scores.sort(descending=True)
            before = ordered.softmax(0).cumsum(0).roll(1)
            before[0] = 0
            scores[places[before > sampling.top_p]] = float("-inf")
        return scores


SAMPLING = {"text": Sampling(temperature=0.7, top_k=6, top_p=0.9), "image": Sampling(temperature=1.3, top_k=100, top_p=0.8)}


@pytest.mark.parametrize("three_way", [False, True])
@pytest.mark.parametrize("differential", [False, True])
@pytest.mark.parametrize("same_size", [False, True])
@pytest.mark.parametrize("target", [None, (2, 3), (1, 1), (12, 1)])
@pytest.mark.parametrize("references", [[], [(2, 2)], [(2, 5), (1, 3)]])
def test_every_form_of_the_published_processor(three_way, differential, same_size, target, references) -> None:
    images = [i for size in references for i in image_ids(*size)]
    prompt, unconditional = [1, 2, *images, 3], [1, *images]
    # one prompt in four has images that the other streams do not see
    unseen = not same_size and target is None and len(references) == 1
    unconditional = [1] if unseen else unconditional
    kind = "no_text_img_cfg" if three_way else "no_text"
    theirs = Reference(2.5, 1.7, three_way, differential, SAMPLING, unconditional, target, same_size)
    grammar = Emu35PublishedGrammar(size=target, unconditional=unconditional, same_size=same_size, stop=(), format=FORMAT)
    guidance = emu35_published_guidance(kind, scale=2.5, image_scale=1.7, differential=differential)
    state, ids = grammar.start(prompt), list(prompt)
    draws = torch.Generator().manual_seed(3)
    for step in range(70):
        streams = torch.randn(3 if three_way else 2, VOCABULARY, generator=draws) * 2
        wanted = theirs(ids, streams)
        described = grammar.describe(state)
        scores = guidance.combine(streams[:, None], step)[0] if described.is_visual else streams[0]
        mask = torch.full_like(scores, float("-inf"))
        for first, stop in grammar.allowed(state):
            mask[first:stop] = 0
        sampling = SAMPLING["image" if state.in_image else "text"] if differential else Sampling()
        torch.testing.assert_close(truncate((scores + mask)[None], sampling)[0], wanted, atol=1e-5, rtol=1e-5)
        following = int(wanted.argmax()) if state.in_image or step % 9 else BEGIN
        if following == BEGIN + 2 and not state.in_image:
            following = 2  # upstream asks its other streams wherever text holds the id that ends an image, to no effect
        if state.mode == "size" and theirs.size is None and len(state.size) in (0, 3):
            following = ZERO + 1  # a small image, so that several fit
        ids.append(following)
        state = grammar.advance(state, following)
    assert ids.count(BEGIN) > len(references) + (theirs.size is not None and max(theirs.size) < 9)


def test_other_forms_of_guidance_are_refused_by_name() -> None:
    for kind in ("no_prev_text", "no_prev_modal", "uncondition_tokens"):
        with pytest.raises(ValueError, match=f"unconditional_type is '{kind}'; accepted: 'no_text', 'no_text_img_cfg'"):
            emu35_published_guidance(kind, scale=2.0)
    assert emu35_published_guidance("no_text", scale=2.0) == ClassifierFree(scale=2.0, images_only=True)
    three = emu35_published_guidance("no_text_img_cfg", scale=2.0, image_scale=1.5, differential=False)
    assert three == ThreeWay(scale=2.0, image_scale=1.5)
