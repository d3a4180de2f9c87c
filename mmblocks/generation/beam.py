"""Beam search: the likeliest text, for captions and short answers.

Shapes: P prompts, W beams, B = P * W rows, V ids.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmblocks.generation.autoregressive import check_prompt, most_tokens, some_id_head_of
from mmblocks.generation.choosing import Chosen
from mmblocks.generation.grammar import ChoosingGrammar, Grammar, IdRange, State, describe_all
from mmblocks.generation.id_heads import IdHead, check_ids, id_head, ids_of
from mmblocks.generation.options import Generation, takes_old_keywords
from mmblocks.generation.reading import IdModel, Reader
from mmblocks.generation.tables import TableWriter
from mmblocks.layers.categorical import VALID_LOGITS
from mmblocks.roles import AnyHead
from mmblocks.sequence.batches import Batch
from mmblocks.support.named import Named


class Beam(NamedTuple):
    """A text that was found.

    Attributes:
        ids: what follows the prompt, the id that stops it included.
        score: log probability, divided by ``length ** length_penalty``.
    """

    ids: tuple[int, ...]
    score: float


class _Hypotheses:
    """The best finished texts of one prompt."""

    def __init__(self, num_beams: int, length_penalty: float) -> None:
        self.num_beams, self.length_penalty = num_beams, length_penalty
        self.beams: list[Beam] = []

    def add(self, ids: Sequence[int], log_probability: float) -> None:
        self.beams.append(Beam(tuple(ids), log_probability / len(ids) ** self.length_penalty))
        self.beams.sort(key=lambda beam: -beam.score)
        del self.beams[self.num_beams :]

    def is_settled(self, best_open: float, length: int) -> bool:
        """Whether no open text can still do better, as lengths stand."""
        full = len(self.beams) == self.num_beams
        return full and self.beams[-1].score >= best_open / length**self.length_penalty


class _Heads:
    """The heads that write: the one where none is named, and those that a grammar names.

    Args:
        outputs: by name.
        default: where the grammar names none.
    """

    def __init__(self, outputs: Named[AnyHead], default: IdHead) -> None:
        self.outputs, self.default = outputs, default

    def named(self, name: str | None) -> IdHead:
        """The head of that name."""
        return self.default if name is None else id_head(self.outputs, name)

    def check(self, grammar: Grammar, states: Sequence[State]) -> None:
        """Refuses heads that are not there, or cannot write their ids, as far as the grammar knows beforehand."""
        if isinstance(grammar, ChoosingGrammar):
            for name, ranges in (choice for state in set(states) if state.mode != "done" for choice in grammar.choices(state)):
                _check_ranges(self.named(name), ranges, name)

    def log_probabilities(self, hidden: Tensor, grammar: Grammar, states: Sequence[State]) -> Tensor:
        """(B, V) of all ids up to the last that may come: each row's among those that may, by the head that writes them."""
        allowed = [grammar.allowed(state) for state in states]
        rows: dict[str | None, list[int]] = {}
        for row, one in enumerate(describe_all([grammar] * len(states), states)):
            if one.writes != "id":
                raise ValueError(f"the grammar lets head {one.head!r} write a {one.writes}; accepted for beams: ids alone")
            rows.setdefault(one.head, []).append(row)
        width = max(stop for ranges in allowed for _, stop in ranges)
        found = hidden.new_full((len(states), width), -math.inf, dtype=torch.float32)
        for name, own in rows.items():
            head = self.named(name)
            first, stop = ids_of(head)
            logits = pad(head.logits(hidden[own])[:, : max(0, width - first)], (first, max(0, width - stop)))[:, :width]
            forbidden = _forbidden([allowed[row] for row in own], width)
            found[own] = logits.masked_fill(forbidden.to(hidden.device), -math.inf).log_softmax(dim=-1)
            for row in own:
                if not _is_only(allowed[row]):  # an id that comes in any case need not be one of the head's
                    _check_ranges(head, allowed[row], name)
        return found


def _is_only(ranges: Sequence[IdRange]) -> bool:
    """Whether one id alone may come."""
    return len(ranges) == 1 and ranges[0][1] - ranges[0][0] == 1


def _check_ranges(head: IdHead, ranges: Sequence[IdRange], name: str | None) -> None:
    for first, stop in ranges:
        check_ids(head, first, stop, name)


def _forbidden(allowed: Sequence[Sequence[IdRange]], width: int) -> Tensor:
    """True at the ids that may not come; (N, V)."""
    mask = torch.ones(len(allowed), width, dtype=torch.bool)
    for row, ranges in zip(mask, allowed, strict=True):
        for first, stop in ranges:
            row[first:stop] = False
    return mask


@takes_old_keywords
@torch.no_grad()
def beam_search(
    model: IdModel,
    prompt: Batch,
    grammar: Grammar,
    options: Generation | None = None,
    *,
    num_beams: int,
    length_penalty: float = 1.0,
) -> list[list[Beam]]:
    """The likeliest continuations of each prompt, best first.

    Args:
        model: reads and writes ids.
        prompt: P left-padded rows.
        grammar: what may follow; ids alone.
        options: ``max_tokens``, ``input`` and ``head``; nothing is sampled or guided. Ids for which the grammar names another head
            or input are written and read by those.
        num_beams: texts followed at once, and given back.
        length_penalty: 0 compares log probabilities, 1 their mean per id; more favours long texts.

    Raises:
        TypeError: a head that the grammar names and that writes no ids.
        ValueError: fewer than one beam, a length penalty that is not finite, other options, no such head, a grammar that
            lets one write vectors or spans, or a prompt that cannot be continued; logits that hold NaN or plus infinity, or are all
            minus infinity.

    Examples:
        >>> from mmblocks import Decoder, LMHead, MultimodalModel, TextEmbedding, TextGrammar, text
        >>> from mmblocks.generation import Generation, beam_search
        >>> ends = {"inputs": {"text": TextEmbedding(vocab_size=16, dim=16)}, "outputs": {"text": LMHead(dim=16, vocab_size=16)}}
        >>> model = MultimodalModel(trunk=Decoder(dim=16, num_layers=1, num_heads=2, mlp_dim=16), **ends).eval()
        >>> prompt = model.batch_builder()([[text([1, 2])]], padding="left")
        >>> (beams,) = beam_search(model, prompt, TextGrammar(16), Generation(max_tokens=4), num_beams=3)
        >>> [len(beam.ids) for beam in beams], beams[0].score >= beams[1].score >= beams[2].score
        ([4, 4, 4], True)
    """
    if num_beams < 1:
        raise ValueError(f"num_beams is {num_beams}; accepted: 1 or more")
    if not math.isfinite(length_penalty):
        raise ValueError(f"length_penalty is {length_penalty}; accepted: a finite number")
    options = options or Generation()
    options.check_used("beam_search", "max_tokens", "input", "head")
    prompts = check_prompt(prompt, 1)
    starts = [grammar.start([i for i in row if i >= 0]) for row in prompt.ids.tolist()]
    max_tokens = most_tokens(options, [grammar] * prompts, starts, model)
    heads = _Heads(model.outputs, some_id_head_of(model.outputs, options.head))
    heads.check(grammar, starts)
    cache = model.trunk.new_cache(prompts, prompt.ids.shape[1] + max_tokens)
    hidden = model.trunk(model.embed(prompt), prompt.table, cache, mask=model.mask or prompt.mask)[:, -1]
    spread = torch.arange(prompts, device=hidden.device).repeat_interleave(num_beams)
    cache, hidden = cache.rows(spread), hidden[spread]
    reader = Reader(model, None, options.input, num_streams=1, may_grow=False)
    writer = TableWriter(prompt.table.rows(spread), 1, images_only=False)

    states = [state for state in starts for _ in range(num_beams)]
    written: list[list[int]] = [[] for _ in states]
    # All beams of a prompt begin alike: only the first may be continued.
    scores = torch.full((prompts, num_beams), float("-inf"), device=hidden.device)
    scores[:, 0] = 0
    found = [_Hypotheses(num_beams, length_penalty) for _ in range(prompts)]
    for length in range(1, max_tokens + 1):
        # NaN in a beam that is out of the running, which may have no id left, is of no matter.
        found_now = scores.view(-1, 1) + heads.log_probabilities(hidden, grammar, states)
        totals = torch.where(scores.view(-1, 1) == float("-inf"), float("-inf"), found_now)
        scores, rows, ids = _best(totals, scores, grammar, states, written, found)
        before = [states[row] for row in rows]
        states = [grammar.advance(state, i) for state, i in zip(before, ids, strict=True)]
        written = [[*written[row], i] for row, i in zip(rows, ids, strict=True)]
        settled = all(f.is_settled(float(best), length) for f, best in zip(found, scores.amax(dim=1), strict=True))
        if settled or length == max_tokens:
            break
        index = torch.tensor(rows, device=hidden.device)
        cache = cache.rows(index)
        chosen = Chosen(torch.tensor(ids, device=hidden.device), {})
        embeds = reader.embed_chosen(chosen, [grammar] * len(ids), before)
        hidden = model.trunk(embeds[:, None], writer.next([grammar] * len(ids), before, states), cache, mask=model.mask)[:, 0]
    for row, (ids_so_far, score) in enumerate(zip(written, scores.flatten().tolist(), strict=True)):
        if score > float("-inf"):
            found[row // num_beams].add(ids_so_far, score)
    return [hypotheses.beams for hypotheses in found]


def _best(
    totals: Tensor,
    scores: Tensor,
    grammar: Grammar,
    states: list[State],
    written: list[list[int]],
    found: list[_Hypotheses],
) -> tuple[Tensor, list[int], list[int]]:
    """The best open continuations of each prompt; finished ones go to ``found``."""
    prompts, num_beams = scores.shape
    vocabulary = totals.shape[-1]
    # Twice as many as there are beams: half of them may end.
    values, places = totals.view(prompts, -1).topk(min(2 * num_beams, num_beams * vocabulary), dim=1)
    kept = torch.full_like(scores, float("-inf"))
    rows, ids = [], []
    for prompt, (row_values, row_places) in enumerate(zip(values.tolist(), places.tolist(), strict=True)):
        if any(math.isnan(value) for value in row_values):  # comes first, and is what softmax makes of infinities
            raise ValueError(f"the logits of prompt {prompt} hold NaN or infinity, or are all minus infinity; {VALID_LOGITS}")
        filled = 0
        for rank, (value, place) in enumerate(zip(row_values, row_places, strict=True)):
            row, next_id = prompt * num_beams + place // vocabulary, place % vocabulary
            if filled == num_beams:
                break
            if value > float("-inf") and grammar.advance(states[row], next_id).mode == "done":
                if rank < num_beams:
                    found[prompt].add([*written[row], next_id], value)
                continue
            kept[prompt, filled] = value
            filled += 1
            rows.append(row)
            ids.append(next_id if value > float("-inf") else grammar.allowed(states[row])[0][0])
        for _ in range(filled, num_beams):  # fewer continuations than beams: follow the first one, out of the running
            rows.append(prompt * num_beams)
            ids.append(grammar.allowed(states[prompt * num_beams])[0][0])
    return kept, rows, ids
