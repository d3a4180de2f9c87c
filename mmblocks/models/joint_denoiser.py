"""Several modalities denoised together, each at a time of its own: one model for all of their distributions.

A modality whose time is the cleanest is a condition, one whose time is the noisiest says nothing. So the same model samples all
modalities jointly, some of them given others, or one alone.

Shapes: B rows, C channels of a modality's tokens, D width, N values of all modalities that are sampled.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
from jaxtyping import Float, Int, Num
from torch import Generator, Tensor, nn

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.compose import MultimodalModel
from mmblocks.heads.span_denoising import SpanDenoisingHead
from mmblocks.layers.diffusion.denoising_guidance import DenoisingGuidance, LinearGuidance, check_scales
from mmblocks.layers.diffusion.denoising_samplers import DiffusersSampler, TokenSampler
from mmblocks.layers.diffusion.noise_paths import FlowPath, NoisePath, TwoEndedPath
from mmblocks.layers.losses.row_losses import check_shape
from mmblocks.roles import Trunk, check_role
from mmblocks.sequence.batches import Batch
from mmblocks.sequence.masks import Everything
from mmblocks.sequence.segments import vectors
from mmblocks.sequence.tokens import TokenTable
from mmblocks.support.checks import check_finite


class JointDenoiser(Block):
    """A trunk that reads all modalities, noised, with a token for the time of each, and predicts the target of each.

    Every token sees every other one. In the table a modality's index is the place of its name in ``shapes``: a ``RoutedDecoder``
    gives each its own weights.

    The parts are those of its attribute ``model``, a ``MultimodalModel`` with an input and a ``SpanDenoisingHead`` for each
    modality. Sampling has a loop of its own: all spans of a row move in the same step, and are guided by streams in which the
    others are noise, while ``model.generate`` writes a row's spans one after the other.

    Args:
        trunk: embeddings and table to states, such as a ``Decoder``.
        dim: D.
        shapes: name of a modality -> its axes and channels, one to three axes: ``{"image": (7, 7, 4), "caption": (5, 16)}``.
        path: what noise does, and what the network predicts; ``FlowPath(density="uniform")`` if None. Times must be sampled up to
            both ends, since conditions and what is left out stand there.
        sampler: ``layers.diffusion.denoising_samplers``; 25 of Euler's steps if None.
        guidance: how predictions are combined; ``LinearGuidance()`` if None.

    Raises:
        TypeError: a part that lacks a method; the message names it.
        ValueError: no modality, a shape without axes or with more than three, or a path whose network gives a variance too.

    Source: the idea of UniDiffuser (arXiv 2303.06555), around any trunk; its files are not read.

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder
        >>> from mmblocks.layers import DiffusersSampler
        >>> from mmblocks.models import JointDenoiser
        >>> trunk = Decoder(dim=16, num_layers=1, num_heads=2, mlp_dim=16)
        >>> sampler = DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=2)
        >>> model = JointDenoiser(trunk=trunk, dim=16, shapes={"image": (2, 3, 4), "caption": (5, 8)}, sampler=sampler)
        >>> made = model.sample(2, given={"caption": torch.randn(2, 5, 8)}, wanted=["image"])
        >>> {name: tuple(values.shape) for name, values in made.items()}
        {'image': (2, 2, 3, 4)}
    """

    former: ClassVar[Layout | None] = Layout(
        "joint denoiser until version 0.2",
        (
            Rule("embed.{name}.*", "model.inputs.{name}.*"),
            Rule("time.{name}.*", "model.outputs.{name}.time.*"),
            Rule("output.{name}.*", "model.outputs.{name}.output.*"),
        ),
    )
    path: TwoEndedPath
    sampler: TokenSampler
    guidance: DenoisingGuidance

    def __init__(
        self,
        *,
        trunk: Block,
        dim: int,
        shapes: Mapping[str, Sequence[int]],
        path: Block | None = None,
        sampler: Block | None = None,
        guidance: Block | None = None,
    ) -> None:
        super().__init__()
        if not shapes or any(not 2 <= len(shape) <= 4 or min(shape) < 1 for shape in shapes.values()):
            raise ValueError(f"shapes is {dict(shapes)}; accepted: (*axes, channels) for each name, with one to three axes")
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        path = path or FlowPath(density="uniform")
        sampler = sampler or DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=25)
        guidance = guidance or LinearGuidance()
        check_role(path, NoisePath, "path")
        check_role(sampler, TokenSampler, "sampler")
        check_role(guidance, DenoisingGuidance, "guidance")
        self.path, self.sampler = cast(TwoEndedPath, path), cast(TokenSampler, sampler)
        self.guidance = cast(DenoisingGuidance, guidance)
        self.model = MultimodalModel(
            inputs={name: nn.Linear(shape[-1], dim) for name, shape in self.shapes.items()},
            trunk=cast(Trunk, trunk),
            outputs={
                name: SpanDenoisingHead(dim=dim, channels=shape[-1], path=path, sampler=sampler, time="token", context="read")
                for name, shape in self.shapes.items()
            },
        )
        self._laid: Batch | None = None  # of as many rows as were read last

    def forward(self, values: Mapping[str, Tensor], times: Mapping[str, Num[Tensor, " B"]]) -> dict[str, Tensor]:
        """Predictions of the path's target, (B, *axes, C) each.

        Args:
            values: every modality, noised, (B, *axes, C).
            times: what the network is told, the path's ``net_time``, of every modality.

        Raises:
            ValueError: names or shapes that do not fit.
        """
        rows = self._rows(values)
        self._check_names("times", times)
        for name in self.shapes:
            check_shape(f"times[{name!r}]", times[name], (rows,))
        batch = self._batch(values)
        heads = {name: (self._head(name), spans) for name, spans in batch.spans.items()}
        told = {name: head.condition(times[name], spans) for name, (head, spans) in heads.items()}
        readings = {name: head.reading(spans.rows(), told[name], spans) for name, (head, spans) in heads.items()}
        hidden = self.model.hidden(batch, readings=readings).flatten(0, 1)
        found = {name: head.predicted(hidden[spans.states], told[name], spans) for name, (head, spans) in heads.items()}
        return {name: value.view(rows, *self.shapes[name]) for name, value in found.items()}

    def loss(
        self,
        values: Mapping[str, Tensor],
        *,
        t: Mapping[str, Int[Tensor, " B"]] | None = None,
        noise: Mapping[str, Tensor] | None = None,
        generator: Generator | None = None,
    ) -> dict[str, Float[Tensor, " B"]]:
        """The path's loss of each row and modality, in float32.

        Args:
            values: data, (B, *axes, C) each.
            t: the path's times, independent of each other; sampled where none are handed in.
            noise: in the values' shapes; sampled likewise.
            generator: source of randomness.

        Raises:
            ValueError: names, shapes or times that do not fit, or values that are not finite (checked on CPU).
        """
        rows = self._rows(values)
        chosen: dict[str, dict[str, Tensor]] = {name: {} for name in self.shapes}
        for what, handed_in in (("t", t), ("noise", noise)):
            if handed_in is not None:
                self._check_names(what, handed_in)
                for name, value in handed_in.items():
                    check_shape(f"{what}[{name!r}]", value, (rows,) if what == "t" else (rows, *self.shapes[name]))
                    chosen[name][what] = value if what == "t" else value.flatten(0, -2)
        for name, value in values.items():
            check_finite(name, value)
        losses = self.model(self._batch(values), given=chosen, generator=generator).token_losses
        return {name: losses[name].view(rows, -1).mean(dim=1) for name in values}

    @torch.no_grad()
    def sample(
        self,
        rows: int,
        *,
        given: Mapping[str, Tensor] | None = None,
        wanted: Sequence[str] | None = None,
        guidance: float = 1.0,
        sampler: Block | None = None,
        noise: Mapping[str, Tensor] | None = None,
        generator: Generator | None = None,
    ) -> dict[str, Tensor]:
        """What is wanted, (B, *axes, C) each, in float32.

        Args:
            rows: B.
            given: conditions, clean.
            wanted: what is sampled, jointly; everything that is not given if None. What is neither given nor wanted is left out:
                it stays noise.
            guidance: ``u + guidance * (c - u)``, where each modality's u is its prediction without all others; 1 is none.
            sampler: another one for this call.
            noise: what modalities begin with, and what stands where they are left out, in place of random noise.
            generator: source of randomness.

        Raises:
            ValueError: names or shapes that do not fit, nothing wanted, or guidance below 1 or without anything to be guided by.
        """
        given, wanted = self._asked(rows, given or {}, wanted, guidance)
        start = self._noise(rows, noise or {}, generator)
        chosen = self.sampler if sampler is None else cast(TokenSampler, sampler)
        times = chosen.times(self.path).to(next(iter(start.values())).device)
        told = times.tolist()
        sizes = [start[name][0].numel() for name in wanted]

        def predict(x: Tensor, step: int) -> Tensor:
            moving = {name: part.view(start[name].shape) for name, part in zip(wanted, x.split(sizes, dim=1), strict=True)}
            found = self._streams(moving, given, start, times[step], wanted if guidance > 1 else ())
            if guidance > 1:
                pairs = [(found[0][name], alone[name]) for name, alone in zip(wanted, found[1:], strict=True)]
                return torch.cat([self.guidance(pair, (guidance,), told[step]).flatten(1) for pair in pairs], dim=1)
            return torch.cat([found[0][name].flatten(1) for name in wanted], dim=1)

        # Side by side in one row: what a sampler does with a number is the same for all of a row's.
        made = chosen.sample(predict, torch.cat([start[name].flatten(1) for name in wanted], dim=1), self.path, generator=generator)
        return {name: part.view(start[name].shape) for name, part in zip(wanted, made.split(sizes, dim=1), strict=True)}

    def table(self, rows: int, device: torch.device | str = "cpu") -> TokenTable:
        """What the tokens are: of each modality its time, then its values; all in one step."""
        return self._batch({name: torch.zeros(rows, *shape) for name, shape in self.shapes.items()}).table.to(device)

    def _head(self, name: str) -> SpanDenoisingHead:
        return cast(SpanDenoisingHead, self.model.outputs[name])

    def _batch(self, values: Mapping[str, Tensor]) -> Batch:
        """A span for each modality of each row, in the order of ``shapes``, all of which attend to each other."""
        first = next(iter(values.values()))
        if self._laid is None or self._laid.ids.shape[0] != len(first) or self._laid.ids.device != first.device:
            named = enumerate(self.shapes.items())
            sample = [vectors(torch.zeros(shape), input=name, target=name, modality=index) for index, (name, shape) in named]
            with torch.inference_mode(False):  # gradients may flow in a later call
                batch = self.model.batch_builder()([sample] * len(first)).to(first.device)
                table = batch.table._replace(order=torch.zeros_like(batch.table.order))
                self._laid = batch._replace(table=table, mask=Everything())
        spans = {name: own._replace(values=values[name].flatten(0, -2)) for name, own in self._laid.spans.items()}
        return self._laid._replace(spans=spans)

    def _streams(
        self,
        moving: dict[str, Tensor],
        given: Mapping[str, Tensor],
        noise: dict[str, Tensor],
        time: Tensor,
        alone: Sequence[str],
    ) -> list[dict[str, Tensor]]:
        """Predictions with all that is known, then for each of ``alone`` with everything else left out, in one pass."""
        cleanest, noisiest = self.path.net_time(torch.tensor(self.path.ends, device=time.device))
        streams = []
        for only in (None, *alone):
            kept = {name: value for name, value in moving.items() if only in (None, name)}
            known = given if only is None else {}
            values = {name: kept.get(name, known.get(name, noise[name])) for name in self.shapes}
            times = {name: time if name in kept else cleanest if name in known else noisiest for name in self.shapes}
            streams.append((values, times))
        rows = len(next(iter(noise.values())))
        values = {name: torch.cat([stream[name] for stream, _ in streams]) for name in self.shapes}
        times = {name: torch.stack([told[name].float() for _, told in streams]).repeat_interleave(rows) for name in self.shapes}
        found = {name: value.float().chunk(len(streams)) for name, value in self(values, times).items()}
        return [{name: found[name][index] for name in found} for index in range(len(streams))]

    def _asked(
        self, rows: int, given: Mapping[str, Tensor], wanted: Sequence[str] | None, guidance: float
    ) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
        names = tuple(name for name in self.shapes if name not in given) if wanted is None else tuple(wanted)
        check_scales((guidance,), 2)
        if not names or len(set(names)) < len(names) or not {*names, *given} <= {*self.shapes} or {*names} & {*given}:
            found = f"given is {list(given)}, wanted {list(names)}"
            raise ValueError(f"{found}; accepted: names of {list(self.shapes)}, none twice, at least one wanted")
        if guidance > 1 and len(names) + len(given) == 1:
            raise ValueError(f"guidance is {guidance} for {names[0]!r} alone; accepted: 1, or another modality given or wanted")
        for name, value in given.items():
            check_shape(f"given[{name!r}]", value, (rows, *self.shapes[name]))
            check_finite(f"given[{name!r}]", value)
        return given, names

    def _noise(self, rows: int, noise: Mapping[str, Tensor], generator: Generator | None) -> dict[str, Tensor]:
        device = next(self.model.inputs.parameters()).device
        if not {*noise} <= {*self.shapes}:
            raise ValueError(f"noise has {list(noise)}; accepted: names of {list(self.shapes)}")
        made = {}
        for name, shape in self.shapes.items():
            given = noise.get(name)
            made[name] = torch.empty(rows, *shape, device=device).normal_(generator=generator) if given is None else given.float()
            check_shape(f"noise[{name!r}]", made[name], (rows, *shape))
        return made

    def _rows(self, values: Mapping[str, Tensor]) -> int:
        self._check_names("values", values)
        rows = len(next(iter(values.values())))
        for name, shape in self.shapes.items():
            check_shape(f"values[{name!r}]", values[name], (rows, *shape))
        return rows

    def _check_names(self, what: str, found: Mapping[str, object]) -> None:
        if {*found} != {*self.shapes}:
            raise ValueError(f"{what} has {list(found)}; accepted: {list(self.shapes)}")
