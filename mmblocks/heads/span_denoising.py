"""The trunk itself denoises: a span is read noised, with its time, and its states predict what the path wants.

Shapes: N tokens of all spans, S spans, G streams, D width of the trunk, C channels of a token.
"""

from collections.abc import Callable
from collections.abc import Generator as Coroutine
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Generator, Tensor, nn

from mmblocks.block import Block
from mmblocks.layers.diffusion.adaln import ModulatedLinear, Modulation, TimeEmbedding, modulate
from mmblocks.layers.diffusion.denoising_samplers import DiffusersSampler, SteppedSampler
from mmblocks.layers.diffusion.noise_paths import FlowPath, NoisePath, TwoEndedPath
from mmblocks.layers.losses.row_losses import check_shape
from mmblocks.roles import check_role
from mmblocks.sequence.spans import Guide, Pass, Reading, SpanLayout, Spans
from mmblocks.support.checks import check_finite, check_range


class ModulatedOutput(nn.Module):
    """A norm that a condition shifts and scales, and a linear map.

    Args:
        dim: D.
        channels: of the output.

    Source: DiT (arXiv 2212.09748), whose last layer it is.
    """

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation = Modulation(dim, dim, 2)
        self.predict = nn.Linear(dim, channels)

    def forward(self, hidden: Float[Tensor, "*G N D"], condition: Float[Tensor, "*told N D"]) -> Float[Tensor, "*G N C"]:
        """States to predictions."""
        shift, scale = self.modulation(condition).chunk(2, dim=-1)
        return self.predict(modulate(self.norm(hidden), shift, scale))


OUTPUTS: dict[str, Callable[[int, int], nn.Linear | ModulatedOutput | ModulatedLinear]] = {
    "linear": nn.Linear,
    "modulated": ModulatedOutput,
    "modulated_states": lambda dim, channels: ModulatedLinear(dim, dim, channels),
}
"""What becomes of states."""


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
        output: a "linear" map of the states, or one after a norm "modulated" by the time (DiT, OmniGen), or one "modulated" as they
            are, "modulated_states", after a norm of the trunk (ACDiT).
        num_classes: of a class that samples give each span, ``given={"label": 3}``, which is added to its time; one more stands for
            none. 0 for no classes.
        label_dropout: how often a class is left out while training.
        attends: whether a token attends to its whole "span", or in "causal" order.
        context: see ``SpanLayout``: "read" lets the tokens after a span attend to it as it was noised, as Transfusion does.
        scale: values are multiplied by this before they are noised, and divided by it when they are written.

    Raises:
        TypeError: a path or a sampler that lacks a method.
        ValueError: options out of their range, or a path whose network gives a variance too.

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
        output: Literal["linear", "modulated", "modulated_states"] = "linear",
        num_classes: int = 0,
        label_dropout: float = 0.0,
        attends: Literal["span", "causal"] = "span",
        context: Literal["clean", "read"] = "clean",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if time not in ("added", "token", "condition") or output not in OUTPUTS:
            accepted = f"'added', 'token' or 'condition', and {', '.join(map(repr, OUTPUTS))}"
            raise ValueError(f"time is {time!r}, output {output!r}; accepted: {accepted}")
        if scale == 0 or num_classes < 0:
            raise ValueError(f"scale is {scale}, num_classes {num_classes}; accepted: a scale other than 0, classes of 0 or more")
        path = path or FlowPath()
        sampler = sampler or DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=25)
        check_role(path, NoisePath, "path")
        check_role(sampler, SteppedSampler, "sampler")
        self.path, self.sampler = cast(TwoEndedPath, path), cast(SteppedSampler, sampler)
        if self.path.num_outputs != 1:
            raise ValueError(f"path gives {self.path.num_outputs} values per channel; accepted: 1")
        self.span = SpanLayout(writes="vectors", attends=attends, context=context, lead=int(time == "token"))
        self.channels, self.told, self.scale = channels, time, scale
        self.num_classes, self.label_dropout = num_classes, label_dropout
        self.time = TimeEmbedding(dim)
        self.classes = nn.Embedding(num_classes + 1, dim) if num_classes else None
        self.output = OUTPUTS[output](dim, channels)
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
        t: Int[Tensor, " S"] | None = None,
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
        times = spans.per_token(t)
        condition = self.condition(self.path.net_time(t), spans)
        return self.reading(self.path.corrupt(x, noise, times), condition, spans)._replace(learned=(x, noise, times, condition))

    def loss(self, hidden: Float[Tensor, "N D"], spans: Spans, reading: Reading) -> Float[Tensor, " N"]:
        """The path's loss of each token, the mean over its channels, in float32."""
        x, noise, times, condition = reading.learned
        return self.path.losses(self.predicted(hidden, condition, spans), x, noise, times)

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
        noise: Float[Tensor, "N C"] | None = None,
        generator: Generator | None = None,
    ) -> Coroutine[Pass, Float[Tensor, "G N D"], Tensor]:
        """Noise to values, in the steps of the head's sampler, or of another; ``noise`` is begun with in place of random noise."""
        sampler = self.sampler if sampler is None else sampler
        told = sampler.times(self.path).to(spans.device)
        noise = spans.normal(self.channels, generator=generator) if noise is None else noise
        steps = sampler.stepwise(noise, self.path, generator=generator)
        try:
            x, step = next(steps)
            while True:
                condition = self.condition(told[step].expand(spans.num_spans), spans)
                hidden = yield Pass(self.reading(x, condition, spans), shown=x / self.scale)
                x, step = steps.send(guide(self.predicted(hidden, condition, spans).float()))
        except StopIteration as stop:
            made: Tensor = stop.value
        return made / self.scale

    def reading(self, x: Float[Tensor, "N C"], condition: Float[Tensor, "GS D"], spans: Spans) -> Reading:
        """What the trunk reads of noised values, with what it is told of them."""
        values = x.to(self._dtype)
        if self.told == "token":
            return Reading(values=values, leads=condition)
        if self.told == "condition":
            return Reading(values=values, condition=condition)
        return Reading(values=values, added=self._by_token(condition, spans).flatten(0, 1))

    def condition(self, time: Num[Tensor, " S"], spans: Spans) -> Float[Tensor, "GS D"]:
        """What is told of times: of each span, and of each stream where these have classes of their own."""
        told = self.time(time)
        if self.classes is None:
            return told
        labels = spans.given.get("label")
        if labels is None:
            labels = torch.full((spans.num_spans,), self.num_classes, device=told.device)
        check_range("label", labels, self.num_labels, ", the last for no class")
        return told.repeat(len(labels) // max(len(told), 1), 1) + self.classes(labels)

    def predicted(self, hidden: Float[Tensor, "*G N D"], condition: Float[Tensor, "GS D"], spans: Spans) -> Float[Tensor, "*G N C"]:
        """What the network gives, of states of the spans."""
        if isinstance(self.output, nn.Linear):
            return self.output(hidden)
        told = self._by_token(condition, spans)
        return self.output(hidden, told if hidden.ndim == 3 else told[0])

    def _by_token(self, condition: Float[Tensor, "GS D"], spans: Spans) -> Float[Tensor, "G N D"]:
        streams = len(condition) // spans.num_spans if spans.num_spans else 1
        return condition.unflatten(0, (streams, spans.num_spans))[:, spans.of]

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.output.parameters()).dtype
