"""The trunk itself denoises: a span is read noised, with its time, and its states predict what the path wants.

Shapes: N tokens of all spans, S spans, G streams, D width of the trunk, C channels of a token.
"""

from collections.abc import Generator as Coroutine
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Num
from torch import Generator, Tensor, nn

from mmblocks.block import Block
from mmblocks.layers.diffusion.adaln import ModulatedLinear, Modulation, TimeEmbedding, modulate
from mmblocks.layers.diffusion.denoising_samplers import DiffusersSampler, SteppedSampler
from mmblocks.layers.diffusion.noise_paths import FlowPath, NoisePath, TwoEndedPath
from mmblocks.layers.losses.row_losses import check_shape
from mmblocks.roles import check_role
from mmblocks.sequence.masks import MaskRule
from mmblocks.sequence.spans import Guide, Pass, Reading, SpanLayout, Spans, to_patches
from mmblocks.support.checks import check_finite, check_range


class ModulatedOutput(Block):
    """A norm that a condition shifts and scales, and a linear map.

    Args:
        dim: D.
        channels: of the output.
        own_time: whether it embeds times itself (OmniGen); otherwise the condition is that of the tokens.

    Source: DiT (arXiv 2212.09748), whose last layer it is.

    Examples:
        >>> import torch
        >>> from mmblocks.heads import ModulatedOutput
        >>> output = ModulatedOutput(dim=16, channels=4, own_time=True)
        >>> moves = output.moves(torch.tensor([0.5]), None)
        >>> tuple(output.predicted(torch.randn(6, 16), moves).shape)
        (6, 4)
    """

    def __init__(self, *, dim: int, channels: int, own_time: bool = False) -> None:
        super().__init__()
        self.time = TimeEmbedding(dim) if own_time else None
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation = Modulation(dim, dim, 2)
        self.predict = nn.Linear(dim, channels)

    def moves(self, time: Num[Tensor, "*S"], condition: Float[Tensor, "_ D"] | None) -> Float[Tensor, "*told D2"]:
        """How states are shifted and scaled at these times, or under these conditions."""
        return self.modulation(condition if self.time is None else self.time(time))

    def predicted(self, hidden: Float[Tensor, "*N D"], moves: Float[Tensor, "*told D2"]) -> Float[Tensor, "*N C"]:
        """States to predictions."""
        shift, scale = moves.chunk(2, dim=-1)
        return self.predict(modulate(self.norm(hidden), shift, scale))


class Told(NamedTuple):
    """What the network is told of each span.

    Attributes:
        time: the path's time, as the network knows it.
        vectors: time and class, embedded; of each stream where these have classes of their own.
    """

    time: Num[Tensor, " S"]
    vectors: Float[Tensor, "GS D"]


class _Corrupted(NamedTuple):
    """What the loss is told of noised values: these, the noise, each token's time, and what the network was told."""

    x: Float[Tensor, "N C"]
    noise: Float[Tensor, "N C"]
    times: Num[Tensor, " N"]
    told: Told


class SpanDenoisingHead(Block):
    """Diffusion or flow over whole spans, computed by the trunk.

    While it is learned, a span is read noised at a time of its own, and the tokens after it attend to a clean copy. While it is
    written, the trunk reads it once in each of the sampler's steps, on the cache of what came before; the finished span is then
    read clean.

    Args:
        dim: D.
        channels: C.
        path: what noise does, and what the trunk predicts; ``FlowPath()`` if None.
        sampler: ``layers.diffusion.denoising_samplers``; 25 of Euler's steps if None.
        time: how the trunk is told the time: "added" to the span's tokens (Transfusion, BAGEL), as a "token" before them (OmniGen),
            or as a "condition" of its layers (DiT, ACDiT), which clean copies have none of.
        output: a "linear" map of the states; one after a norm "modulated" by time and class (DiT); of "modulated_states",
            as they are after a norm of the trunk (ACDiT); or a ``ModulatedOutput`` (OmniGen).
        num_classes: of a class that samples give each span, ``given={"label": 3}``, which is added to its time; one more stands for
            none. 0 for no classes.
        label_dropout: how often a class is left out while training.
        attends: whether a token attends to its whole "span", or in "causal" order.
        context: see ``SpanLayout``: "read" lets the tokens after a span attend to it as it was noised, as Transfusion does.
        scale: values are multiplied by this before they are noised, and divided by it when they are written.
        patch: see ``SpanLayout``: a token then has patch * patch * C channels.

    Raises:
        TypeError: a path or a sampler that lacks a method.
        ValueError: options out of their range, an output of another width, or a path whose network gives a variance too.

    Source: Transfusion (arXiv 2408.11039), OmniGen (arXiv 2409.11340), BAGEL (arXiv 2505.14683).

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, Generation, MultimodalModel, TextEmbedding, LMHead, text, vectors
        >>> from mmblocks.generation import VectorBlock, VectorGrammar
        >>> from mmblocks.heads import SpanDenoisingHead
        >>> from mmblocks.layers import DiffusersSampler
        >>> sampler = DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=2)
        >>> model = MultimodalModel(
        ...     inputs={"text": TextEmbedding(vocab_size=16, dim=32), "latents": torch.nn.Linear(4, 32)},
        ...     trunk=Decoder(dim=32, num_layers=1, num_heads=4, mlp_dim=64),
        ...     outputs={"text": LMHead(dim=32, vocab_size=16), "image": SpanDenoisingHead(dim=32, channels=4, sampler=sampler)},
        ... )
        >>> latents = vectors(torch.randn(2, 3, 4), input="latents", target="image")
        >>> batch = model.batch_builder()([[text([1, 7]), latents, text([8, 2], target="text")]])
        >>> losses = model(batch).losses  # of both, in one pass
        >>> sorted(losses)
        ['image', 'text']
        >>> block = VectorBlock(begin=7, end=8, size=(2, 3), head="image", input="latents", whole=True)
        >>> ((row, made),) = model.generate([[text([1, 7])]], VectorGrammar(block, vocab_size=16), Generation(generator=0))
        >>> tuple(made.values.shape)
        (2, 3, 4)
    """

    path: TwoEndedPath
    sampler: SteppedSampler

    def __init__(
        self,
        *,
        dim: int,
        channels: int,
        path: Block | None = None,
        sampler: Block | None = None,
        time: Literal["added", "token", "condition"] = "added",
        output: Literal["linear", "modulated", "modulated_states"] | ModulatedOutput = "linear",
        num_classes: int = 0,
        label_dropout: float = 0.0,
        attends: Literal["span", "causal"] = "span",
        context: Literal["clean", "read"] = "clean",
        scale: float = 1.0,
        patch: int = 1,
    ) -> None:
        super().__init__()
        if time not in ("added", "token", "condition"):
            raise ValueError(f"time is {time!r}; accepted: 'added', 'token' or 'condition'")
        if scale == 0 or num_classes < 0:
            raise ValueError(f"scale is {scale}, num_classes {num_classes}; accepted: a scale other than 0, classes of 0 or more")
        path = path or FlowPath()
        sampler = sampler or DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=25)
        check_role(path, NoisePath, "path")
        check_role(sampler, SteppedSampler, "sampler")
        self.path, self.sampler = cast(TwoEndedPath, path), cast(SteppedSampler, sampler)
        if self.path.num_outputs != 1:
            raise ValueError(f"path gives {self.path.num_outputs} values per channel; accepted: 1")
        lead = int(time == "token")
        self.span = SpanLayout(writes="vectors", attends=attends, context=context, lead=lead, patch=patch, mixed=True)
        self.channels = channels * patch * patch
        self.told, self.num_classes, self.label_dropout, self.scale = time, num_classes, label_dropout, scale
        self.time = TimeEmbedding(dim)
        self.classes = nn.Embedding(num_classes + 1, dim) if num_classes else None
        self.output = _output(output, dim, self.channels)
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=0.02)

    @property
    def num_labels(self) -> int:
        """Classes, with that for none."""
        return 0 if self.classes is None else self.classes.num_embeddings

    def corrupt(
        self,
        spans: Spans,
        *,
        t: Num[Tensor, " S"] | None = None,
        noise: Float[Tensor, "N C"] | None = None,
        drop: Bool[Tensor, " S"] | None = None,
        generator: Generator | None = None,
    ) -> Reading:
        """Noised values, and their times.

        Args:
            spans: what is learned.
            t: a time of the path for each span, in place of a random one.
            noise: in place of random noise.
            drop: spans whose class is left out; while training sampled with ``label_dropout`` if None.
            generator: source of randomness.

        Raises:
            ValueError: values, times or noise of another shape, times out of range, or values that are not finite (on CPU).
        """
        x = spans.rows().float() * self.scale
        check_shape("values", x, (spans.num_tokens, self.channels))
        check_finite("values", x)
        if t is None:
            t = self.path.sample_times(spans.num_spans, x.device, generator)
        check_shape("t", t, (spans.num_spans,))
        self.path.check_times(t)
        if noise is None:
            noise = torch.empty_like(x).normal_(generator=generator)
        check_shape("noise", noise, tuple(x.shape))
        if drop is None and self.training and self.label_dropout > 0 and "label" in spans.given:
            drop = torch.rand(spans.num_spans, generator=generator, device=x.device) < self.label_dropout
        if drop is not None and "label" in spans.given:
            spans = spans._replace(given={**spans.given, "label": torch.where(drop, self.num_classes, spans.given["label"])})
        times, told = spans.per_token(t), self.condition(self.path.net_time(t), spans)
        return self.reading(self.path.corrupt(x, noise, times), told, spans)._replace(learned=_Corrupted(x, noise, times, told))

    def loss(self, hidden: Float[Tensor, "N D"], spans: Spans, reading: Reading) -> Float[Tensor, " N"]:
        """The path's loss of each token, the mean over its channels, in float32."""
        x, noise, times, told = cast(_Corrupted, reading.learned)
        return self.path.losses(self.predicted(hidden, told, spans), x, noise, times)

    def finished(self, spans: Spans) -> Reading:
        """Values at the cleanest time."""
        x = spans.rows().float() * self.scale
        if self.told == "condition":
            return Reading(values=x.to(self._dtype))
        clean = self.path.net_time(torch.full((spans.num_spans,), self.path.ends[0], device=x.device))
        return self.reading(x, self.condition(clean, spans._replace(given={})), spans)

    def write(
        self,
        spans: Spans,
        *,
        guide: Guide,
        sampler: SteppedSampler | None = None,
        noise: Sequence[Tensor] | Tensor | None = None,
        mask: MaskRule | None = None,
        trajectory: list[tuple[Tensor, Tensor]] | None = None,
        generator: Generator | None = None,
    ) -> Coroutine[Pass, Float[Tensor, "G N D"], Tensor]:
        """Noise to values, in the sampler's steps.

        Args:
            spans: what is written.
            guide: predictions of all streams to one.
            sampler: in place of the head's own.
            noise: what the image of each row of the prompt begins with, as values are, in place of random noise.
            mask: which tokens attend to which in the first pass, in place of the model's rule.
            trajectory: a list that (noised values, guided prediction) of each step are appended to, in rows.
            generator: source of randomness.
        """
        sampler = sampler or self.sampler
        if noise is None:
            start = spans.normal(self.channels, generator=generator)
        else:
            start = torch.cat([to_patches(noise[row].float(), self.span.patch) for row in spans.continues]).to(spans.device)
            check_shape("noise", start, (spans.num_tokens, self.channels))
        times = sampler.times(self.path)
        moments: list[float] = times.tolist()
        times = times.to(spans.device)
        steps = sampler.stepwise(start, self.path, generator=generator)
        try:
            x, step = next(steps)
            while True:
                told = self.condition(times[step].expand(spans.num_spans), spans)
                hidden = yield Pass(self.reading(x, told, spans), shown=x / self.scale, mask=mask if step == 0 else None)
                guided = guide(self.predicted(hidden, told, spans).float(), time=moments[step], counts=spans.counts)
                if trajectory is not None:
                    trajectory.append((x, guided))
                x, step = steps.send(guided)
        except StopIteration as stop:
            made: Tensor = stop.value
        return made / self.scale

    def condition(self, time: Num[Tensor, " S"], spans: Spans) -> Told:
        """What the network is told at these times, which are its own (``path.net_time``)."""
        vectors = self.time(time)
        if self.classes is None:
            return Told(time, vectors)
        labels = spans.given.get("label")
        if labels is None:
            labels = torch.full((spans.num_spans,), self.num_classes, device=vectors.device)
        check_range("label", labels, self.num_labels, ", the last for no class")
        return Told(time, vectors.repeat(len(labels) // max(len(vectors), 1), 1) + self.classes(labels))

    def reading(self, x: Float[Tensor, "N C"], told: Told, spans: Spans) -> Reading:
        """What the trunk reads of noised values, with what it is told of them."""
        values = x.to(self._dtype)
        if self.told == "token":
            return Reading(values=values, leads=told.vectors)
        if self.told == "condition":
            return Reading(values=values, condition=told.vectors)
        return Reading(values=values, added=self._by_token(told.vectors, spans).flatten(0, 1))

    def predicted(self, hidden: Float[Tensor, "*G N D"], told: Told, spans: Spans) -> Float[Tensor, "*G N C"]:
        """What the path asks for, of the states at the tokens of spans that were told this."""
        if isinstance(self.output, nn.Linear):
            return cast(Tensor, self.output(hidden))
        if isinstance(self.output, ModulatedLinear):
            vectors = self._by_token(told.vectors, spans)
            return self.output(hidden, vectors if hidden.ndim == 3 else vectors[0])
        moves = self._by_token(self.output.moves(*told), spans)
        return self.output.predicted(hidden, moves if hidden.ndim == 3 else moves[0])

    def _by_token(self, condition: Float[Tensor, "GS X"], spans: Spans) -> Float[Tensor, "G N X"]:
        streams = len(condition) // spans.num_spans if spans.num_spans else 1
        return condition.unflatten(0, (streams, spans.num_spans)).index_select(1, spans.of)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.output.parameters()).dtype


def _output(output: str | ModulatedOutput, dim: int, channels: int) -> nn.Linear | ModulatedLinear | ModulatedOutput:
    """The part that predicts."""
    if isinstance(output, ModulatedOutput):
        if output.predict.out_features != channels:
            raise ValueError(f"output gives {output.predict.out_features} channels a token; accepted: {channels}")
        return output
    if output not in ("linear", "modulated", "modulated_states"):
        raise ValueError(f"output is {output!r}; accepted: 'linear', 'modulated', 'modulated_states', or a ModulatedOutput")
    if output == "modulated_states":
        return ModulatedLinear(dim, dim, channels)
    return ModulatedOutput(dim=dim, channels=channels) if output == "modulated" else nn.Linear(dim, channels)
