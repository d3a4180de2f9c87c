"""The autoregressive loop: one id per row and step, with a cache, a grammar, and guidance in one batched forward.

Shapes: B rows, R forward rows (B, or 2B with guidance: conditional rows first), L prompt tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from mmblocks.batches import Batch
from mmblocks.generation.grammar import Grammar, IdRange, State
from mmblocks.generation.guidance import classifier_free
from mmblocks.layers.categorical import Sampling, draw
from mmblocks.masks import MaskRule
from mmblocks.segments import NO_ID
from mmblocks.tokens import NO_HEAD, NO_SPAN, PADDING, TokenTable


@runtime_checkable
class IdHead(Protocol):
    """A head over ids, as the loop needs it."""

    vocab_size: int

    def logits(self, hidden: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """(N, D) -> float32 logits of the ids ``start:stop``."""
        ...


@runtime_checkable
class IdModel(Protocol):
    """A model that reads and writes ids; ``MultimodalModel`` is one."""

    inputs: Any  # embedders by name
    trunk: Any  # a Trunk
    outputs: Any  # heads by name
    mask: MaskRule | None

    def embed(self, batch: Batch) -> Tensor:
        """The embeddings (B, L, D) of a batch."""
        ...


class Step(NamedTuple):
    """One step of all rows.

    Attributes:
        ids: the id of each row; meaningless where the row was done before.
        before: each row's state before the step.
        states: each row's state behind it.
    """

    ids: Int[Tensor, " B"]
    before: tuple[State, ...]
    states: tuple[State, ...]


@torch.no_grad()
def generate_ids(
    model: IdModel,
    prompt: Batch,
    grammar: Grammar,
    *,
    max_tokens: int,
    sampling: Sampling,
    guidance: float | None = None,
    generator: Generator | None = None,
    input: str = "text",
    head: str | None = None,
) -> Iterator[Step]:
    """Continues every row of a left-padded prompt until all are done or ``max_tokens`` are written.

    Args:
        model: reads and writes ids.
        prompt: B rows, or with guidance 2B: the second half holds the same prompts without their condition.
        grammar: what may follow.
        max_tokens: steps at most.
        sampling: how ids are drawn.
        guidance: scale of classifier-free guidance, or None for none.
        generator: source of randomness, on the model's device.
        input: the embedder of ids.
        head: the head over ids; may be None where the model has one head.

    Raises:
        ValueError: a prompt that is padded on the right, breaks the grammar, or has an odd number of rows with guidance.
    """
    _check_prompt(prompt, guidance, max_tokens)
    id_head: IdHead = _only_head(model.outputs) if head is None else model.outputs[head]
    num_rows, length = prompt.ids.shape
    batch = num_rows if guidance is None else num_rows // 2
    states = tuple(grammar.start([i for i in row if i != NO_ID]) for row in prompt.ids[:batch].tolist())

    cache = model.trunk.new_cache(num_rows, length + max_tokens)
    mask = model.mask or prompt.mask
    hidden = model.trunk(model.embed(prompt), prompt.table, cache, mask=mask)[:, -1]
    newest = prompt.table.slice(length - 1, length)
    for _ in range(max_tokens):
        allowed = [grammar.allowed(state) for state in states]
        ids = _choose(id_head, hidden, allowed, sampling, guidance, generator)
        before = states
        states = tuple(_advance(grammar, s, i) for s, i in zip(before, ids.tolist(), strict=True))
        yield Step(ids, before, states)
        if all(state.mode == "done" for state in states):
            return
        newest = _next_tokens(newest, grammar, before)
        embeds = model.inputs[input](ids.repeat(num_rows // batch))
        hidden = model.trunk(embeds[:, None], newest, cache, mask=model.mask)[:, 0]


def _choose(
    head: IdHead,
    hidden: Float[Tensor, "R D"],
    allowed: Sequence[tuple[IdRange, ...]],
    sampling: Sampling,
    guidance: float | None,
    generator: Generator | None,
) -> Int[Tensor, " B"]:
    forced = [ranges[0][0] for ranges in allowed if len(ranges) == 1 and ranges[0][1] - ranges[0][0] == 1]
    if len(forced) == len(allowed):
        return torch.tensor(forced, device=hidden.device)
    # Where every row takes the same run of ids (the codes of an image), only those rows of the head are read.
    shared = allowed[0][0] if len(set(allowed)) == 1 and len(allowed[0]) == 1 else (0, head.vocab_size)
    logits = head.logits(hidden, *shared)
    if guidance is not None:
        conditional, unconditional = logits.chunk(2)
        logits = classifier_free(conditional, unconditional, guidance)
    if len(set(allowed)) > 1 or len(allowed[0]) > 1:
        logits = logits.masked_fill(~_as_mask(allowed, head.vocab_size).to(logits.device), float("-inf"))
    return draw(logits, sampling, generator=generator) + shared[0]


def _as_mask(allowed: Sequence[tuple[IdRange, ...]], vocab_size: int) -> Tensor:
    mask = torch.zeros(len(allowed), vocab_size, dtype=torch.bool)
    for row, ranges in zip(mask, allowed, strict=True):
        for first, stop in ranges:
            row[first:stop] = True
    return mask


def _advance(grammar: Grammar, state: State, next_id: int) -> State:
    return state if state.mode == "done" else grammar.advance(state, next_id)


def _next_tokens(newest: TokenTable, grammar: Grammar, states: Sequence[State]) -> TokenTable:
    """The table of the tokens written in these states; rows without their condition get the same."""
    described = [grammar.describe(state) for state in states]
    repeat = newest.shape[0] // len(states)
    device = newest.document.device

    def column(values: list[Any]) -> Tensor:
        return torch.tensor(values, device=device)[:, None].repeat(repeat, 1)

    modality = column([d.modality for d in described])
    in_span = column([d.in_span for d in described])
    image = column([state.num_images for state in states])
    done = column([state.mode == "done" for state in states])
    grid = torch.tensor([d.grid for d in described], device=device)[:, None].repeat(repeat, 1, 1)
    return TokenTable(
        modality=torch.where(done, PADDING, modality),
        document=torch.where(done, PADDING, newest.document),
        span=torch.where(in_span, image, NO_SPAN),
        grid=grid,
        order=newest.order + 1,
        noisy=torch.zeros_like(done),
        target=torch.full_like(newest.target, NO_HEAD),
    )


def _only_head(outputs: Any) -> Any:
    if len(outputs) != 1:
        raise ValueError(f"the model has heads {list(outputs)}: name the one that writes ids with head=")
    return outputs[next(iter(outputs))]


def _check_prompt(prompt: Batch, guidance: float | None, max_tokens: int) -> None:
    if prompt.table.is_padding[:, -1].any():
        raise ValueError("prompt is padded on the right; build it with padding='left', so that rows end together")
    if guidance is not None and prompt.ids.shape[0] % 2:
        raise ValueError(f"prompt has {prompt.ids.shape[0]} rows; guidance needs as many unconditional as conditional ones")
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; accepted: 1 or more")
