"""A head that writes images with a generator: the states at learned queries are its conditions.

Shapes: S spans of an image each, Q queries, N = S * Q tokens, G streams of guidance, D width of the trunk, M conditions of width C.
"""

from collections.abc import Generator as Coroutine
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Real
from torch import Generator, Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmblocks.block import Block
from mmblocks.heads.conditioned_generator import ConditionedGenerator, MaskedGenerator
from mmblocks.layers.losses.row_losses import check_shape
from mmblocks.roles import Connector, check_role
from mmblocks.sequence.spans import Guide, Pass, Reading, SpanLayout, Spans


class _Conditions(NamedTuple):
    """Of all spans: what the generator reads, and which of it there is; None for all."""

    vectors: Float[Tensor, "S M C"]
    real: Bool[Tensor, "S M"] | None = None

    def of(self, spans: list[int]) -> "_Conditions":
        """Those of some spans."""
        return _Conditions(self.vectors[spans], None if self.real is None else self.real[spans])


class _Group(NamedTuple):
    """What is random for the spans whose images have one size."""

    spans: list[int]
    t: Real[Tensor, " S"]
    noise: Float[Tensor, "S *latents"]


class GeneratorHead(Block):
    """Learned queries in a row, whose states tell an image generator what to make.

    The queries stay in the row as context for what follows. The loss is the generator's own; while an image is written, the trunk
    makes one pass over the queries, and the generator's steps follow, with the guidance of all streams in each.

    Args:
        dim: D.
        num_queries: Q.
        generator: such as ``pixels.StateGenerator``.
        connector: states of an image's queries (S, Q, D) to conditions (S, M, C), such as an ``MLPProjector`` or an
            ``OutputMapper``; nothing if None where the widths are equal, a linear map otherwise.
        attends: whether queries of an image attend to each other ("span") or to those before them alone ("causal").
        states: whether the conditions are the states at the "queries", or those of the whole "document" so far, text and images,
            which the queries end (Kosmos-G). The connector then reads one document after the other, of any length.
        layers: after how many layers of the trunk each state is taken, as ``trunks.hidden_states`` counts: those of several are
            laid side by side, as one state of their widths together (TBAC-UniImage). Empty for the trunk's output.

    Raises:
        TypeError: a part that lacks a method.
        ValueError: no query, other ``states``, or layers below 0.

    Source: DreamLLM (arXiv 2309.11499), GILL (arXiv 2305.17216), MetaQueries (arXiv 2504.06256), Query-Kontext; Kosmos-G (arXiv
    2310.02992); TBAC-UniImage (arXiv 2508.08098).

    Examples:
        >>> import torch
        >>> from mmblocks.heads import GeneratorHead
        >>> from mmblocks.layers import DiffusersSampler
        >>> from mmblocks.pixels import DiffusersDenoiser, StateGenerator
        >>> widths = {"in_channels": 3, "out_channels": 3, "caption_channels": 6, "cross_attention_dim": 8, "num_layers": 1}
        >>> heads = {"num_attention_heads": 2, "attention_head_dim": 4}
        >>> across = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 4}
        >>> head = GeneratorHead(
        ...     dim=16,
        ...     num_queries=4,
        ...     generator=StateGenerator(
        ...         network=DiffusersDenoiser(kind="SanaTransformer2DModel", arguments={**widths, **heads, **across}),
        ...         sampler=DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=2),
        ...     ),
        ... )
        >>> head.span.num_tokens, head.span.context, tuple(head.queries.shape)
        (4, 'read', (4, 16))
    """

    def __init__(
        self,
        *,
        dim: int,
        num_queries: int,
        generator: Block,
        connector: Block | None = None,
        attends: Literal["span", "causal"] = "span",
        states: Literal["queries", "document"] = "queries",
        layers: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        if states not in ("queries", "document"):
            raise ValueError(f"states is {states!r}; accepted: 'queries', 'document'")
        if num_queries < 1:
            raise ValueError(f"num_queries is {num_queries}; accepted: 1 or more")
        check_role(generator, ConditionedGenerator, "generator")
        if states == "document":
            check_role(generator, MaskedGenerator, "generator")
        if connector is not None:
            check_role(connector, Connector, "connector")
        self.span = SpanLayout(
            writes="pixels",
            num_tokens=num_queries,
            context="read",
            whole=True,
            attends=attends,
            states="document" if states == "document" else "own",
            layers=tuple(layers),
        )
        self.dim = dim * max(1, len(layers))
        self.generator = cast(MaskedGenerator, generator)
        self.queries = nn.Parameter(torch.empty(num_queries, dim).normal_(std=0.02))
        width = self.generator.condition_dim
        self.connector = connector or (nn.Identity() if width == self.dim else nn.Linear(self.dim, width))

    def corrupt(
        self,
        spans: Spans,
        *,
        t: Real[Tensor, " S"] | None = None,
        noise: Sequence[Tensor] | None = None,
        generator: Generator | None = None,
    ) -> Reading:
        """What the trunk reads: the queries, the same for each image. What is random in the loss is sampled here.

        Args:
            spans: with their images.
            t: a time each, in the unit of the generator's path, in place of the generator of randomness.
            noise: for the latents of each, likewise.
            generator: source of randomness.

        Raises:
            ValueError: spans without images, of another number of tokens, or of a size that the generator does not make.
        """
        images = self._images(spans)
        for name, given in (("t", t), ("noise", noise)):
            if given is not None and len(given) != len(images):
                raise ValueError(f"{name} has {len(given)} entries; accepted: {len(images)}, one for each image")
        groups = []
        for size, chosen in _by_size([(image.shape[-2], image.shape[-1]) for image in images]):
            self.generator.check_size(*size)
            times, sampled = self.generator.times_and_noise(len(chosen), size, device=spans.device, generator=generator)
            if noise is not None:
                handed_in = torch.stack([noise[place] for place in chosen])
                check_shape("noise", handed_in, tuple(sampled.shape))
                sampled = handed_in
            groups.append(_Group(chosen, times if t is None else t[chosen], sampled))
        return self._read(spans)._replace(learned=groups)

    def loss(self, hidden: Float[Tensor, "N D"], spans: Spans, reading: Reading) -> Float[Tensor, " S"]:
        """The generator's loss of each image, in float32; ``hidden`` are the states that the layout says.

        Raises:
            ValueError: states that are not those of all queries; as ``corrupt``.
        """
        images, conditions = self._images(spans), self._conditions(hidden, spans)
        places, losses = [], []
        for chosen, t, noise in cast(list[_Group], reading.learned):
            targets = torch.stack([images[place] for place in chosen])
            places += chosen
            told = conditions.of(chosen)
            real: dict[str, Tensor] = {} if told.real is None else {"real": told.real}  # which only some generators take
            losses.append(self.generator.loss(told.vectors, targets, t=t, noise=noise, **real))
        order = torch.tensor(places, device=hidden.device).argsort()
        return torch.cat(losses)[order] if losses else hidden.new_zeros(0, dtype=torch.float32)

    def write(
        self, spans: Spans, *, guide: Guide, noise: Sequence[Tensor] | None = None, generator: Generator | None = None
    ) -> Coroutine[Pass, Float[Tensor, "G N D"], list[Tensor]]:
        """An image (3, H, W) for each span, in [0, 1], after one pass of the trunk.

        Args:
            spans: whose sizes are those of the images, in pixels.
            guide: predictions of all streams (G, S, X) -> the guided one (S, X), in each step of the generator.
            noise: the latents to begin with, of unit variance, in place of a generator of randomness.
            generator: source of randomness.

        Raises:
            ValueError: spans of another number of tokens, or of a size that the generator does not make.
        """
        self._check_counts(spans)
        sizes = [(height, width) for height, width in spans.sizes]
        for size in set(sizes):
            self.generator.check_size(*size)
        states = yield Pass(self._read(spans), keep=True)
        streams = [self._conditions(stream, spans, index) for index, stream in enumerate(states)]
        images: dict[int, Tensor] = {}
        for size, chosen in _by_size(sizes):
            begun = None if noise is None else torch.stack([noise[place] for place in chosen])
            if noise is None and spans.generators:  # so that an image does not depend on what is written beside it
                own = [spans.generators[place] for place in chosen]
                begun = torch.cat([self.generator.times_and_noise(1, size, device=spans.device, generator=one)[1] for one in own])
            told = [stream.of(chosen) for stream in streams]
            more = {} if all(one.real is None for one in told) else {"reals": [one.real for one in told]}
            made = self.generator.sample_guided(
                [one.vectors for one in told], guide, size=size, noise=begun, generator=generator, **more
            )
            images |= dict(zip(chosen, made, strict=True))
        return [images[place] for place in range(spans.num_spans)]

    def _read(self, spans: Spans) -> Reading:
        return Reading(added=self.queries.repeat(spans.num_spans, 1))

    def _conditions(self, hidden: Float[Tensor, "N D"], spans: Spans, stream: int = 0) -> _Conditions:
        documents = self.span.states == "document"
        counts = spans.contexts[stream] if documents else spans.counts
        if hidden.ndim != 2 or len(hidden) < sum(counts) or hidden.shape[1] != self.dim:
            raise ValueError(f"hidden has shape {tuple(hidden.shape)}; accepted: {(sum(counts), self.dim)}")
        if not documents:
            return _Conditions(self.connector(hidden.unflatten(0, (spans.num_spans, len(self.queries)))))
        made = [self.connector(one[None])[0] for one in hidden[: sum(counts)].split(counts)]
        lengths = torch.tensor([len(one) for one in made], device=hidden.device)
        vectors = pad_sequence(made, batch_first=True)
        return _Conditions(vectors, torch.arange(vectors.shape[1], device=hidden.device) < lengths[:, None])

    def _images(self, spans: Spans) -> list[Tensor]:
        self._check_counts(spans)
        if not isinstance(spans.values, list):
            raise ValueError(f"values of spans are {type(spans.values).__name__}; accepted: a list of images (3, H, W)")
        return spans.values

    def _check_counts(self, spans: Spans) -> None:
        if any(count != len(self.queries) for count in spans.counts):
            raise ValueError(f"counts of spans are {spans.counts}; accepted: {len(self.queries)} each, as many as queries")


def _by_size(sizes: Sequence[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Each size, and which have it."""
    for size in dict.fromkeys(sizes):
        yield size, [place for place, other in enumerate(sizes) if other == size]
