"""An image generator of diffusers whose conditions are vectors, such as a language model's states.

Shapes: B images, M conditions, D their width, P width of the pooled vector, C channels of latents, h and w their sides.
"""

from pathlib import Path
from typing import Literal, Protocol, Self, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Real
from torch import Generator, Tensor, nn

from mmblocks.block import Block
from mmblocks.layers.diffusion.denoising_samplers import DiffusersSampler
from mmblocks.pixels.denoiser_kinds import mean_of
from mmblocks.pixels.diffusers_denoiser import DiffusersDenoiser
from mmblocks.pixels.latent_generator import LatentGenerator
from mmblocks.pixels.pipelines import find_pipeline
from mmblocks.roles import check_role


@runtime_checkable
class ConditionalDenoiser(Protocol):
    """A network as ``StateGenerator`` needs it; its attributes are those of ``DiffusersDenoiser``."""

    channels: int
    condition_dim: int
    pooled_dim: int
    patch: int

    def check_sizes(self, rows: int, columns: int, num_conditions: int) -> None:
        """Refuses latents of so many rows and columns, or so many conditions."""
        ...

    def __call__(
        self,
        latents: Float[Tensor, "B C h w"],
        time: Real[Tensor, "*B"],
        conditions: Float[Tensor, "B M D"],
        *,
        size: tuple[int, int],
        real: Bool[Tensor, "B M"] | None = None,
        pooled: Float[Tensor, "B P"] | None = None,
    ) -> Float[Tensor, "B C h w"]:
        """What the network predicts."""
        ...


class StateGenerator(LatentGenerator):
    """A denoising network, its autoencoder and its sampler: images of vectors, which are learned through it.

        vae = DiffusersAutoencoder.from_pretrained("stabilityai/stable-diffusion-3.5-medium", subfolder="vae")
        generator = StateGenerator.from_diffusers("stabilityai/stable-diffusion-3.5-medium", autoencoder=vae, num_steps=28)
        freeze(generator)  # or attach_lora(generator, ("network.model.transformer_blocks.{}.attn.to_q",), rank=16)

    The loss is the network's own: it tells conditions what the images are, whether or not the network itself trains. A small one
    that learns digits of 28 x 28 pixels in minutes on a CPU, without an autoencoder, is the example.

    Args:
        network: a ``DiffusersDenoiser``, or what is called as one.
        sampler: from noise to latents, such as a ``DiffusersSampler`` with the pipeline's own scheduler.
        autoencoder: a continuous tokenizer of images, which is frozen; None for a network in pixels, scaled to [-1, 1].
        path: what noise does to latents while the network learns, a ``NoisePath``; that of the sampler's scheduler if None.
        pooled: the one vector for all conditions that some networks read beside them: "zeros"; the "mean" of the conditions, where
            it has their width; or "learned", a linear map of the mean, which begins as zeros.

    Raises:
        TypeError: a part that lacks a method.
        ValueError: a pooled vector that the network does not read, or of another width.

    Source: DreamLLM (arXiv 2309.11499), Kosmos-G (arXiv 2310.02992), Dream Engine (arXiv 2502.20172), MetaQueries (arXiv
    2504.06256).

    Examples:
        >>> import torch
        >>> from mmblocks.layers import DiffusersSampler
        >>> from mmblocks.pixels import DiffusersDenoiser, StateGenerator
        >>> down, up = ["DownBlock2D", "CrossAttnDownBlock2D"], ["CrossAttnUpBlock2D", "UpBlock2D"]
        >>> blocks = {"down_block_types": down, "up_block_types": up}
        >>> sizes = {"in_channels": 3, "out_channels": 3, "block_out_channels": [32, 64], "layers_per_block": 1}
        >>> heads = {"cross_attention_dim": 64, "attention_head_dim": 4, "norm_num_groups": 8}
        >>> generator = StateGenerator(
        ...     network=DiffusersDenoiser(kind="UNet2DConditionModel", arguments={**blocks, **sizes, **heads}),
        ...     sampler=DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=2),
        ... )
        >>> states, digits = torch.randn(2, 4, 64, requires_grad=True), torch.rand(2, 3, 28, 28)
        >>> generator.loss(states, digits).mean().backward()
        >>> bool(states.grad.abs().sum() > 0)
        True
        >>> tuple(generator.sample(states, unconditional=torch.zeros(2, 4, 64), guidance=2.0, size=(28, 28)).shape)
        (2, 3, 28, 28)
    """

    def __init__(
        self,
        *,
        network: Block,
        sampler: Block,
        autoencoder: Block | None = None,
        path: Block | None = None,
        pooled: Literal["zeros", "mean", "learned"] = "zeros",
    ) -> None:
        super().__init__(autoencoder=autoencoder, sampler=sampler, path=path)
        check_role(network, ConditionalDenoiser, "network")
        self.network, self.pooled = cast(ConditionalDenoiser, network), pooled
        width, dim = self.network.pooled_dim, self.network.condition_dim
        if pooled not in ("zeros", "mean", "learned"):
            raise ValueError(f"pooled is {pooled!r}; accepted: 'zeros', 'mean', 'learned'")
        if pooled != "zeros" and not width:
            raise ValueError(f"pooled is {pooled!r} with a network that reads no pooled vector; accepted: 'zeros'")
        if pooled == "mean" and width != dim:
            raise ValueError(f"pooled is 'mean', of width {dim}, with a network that reads {width}; accepted: 'zeros', 'learned'")
        self.pooling = nn.Linear(dim, width) if pooled == "learned" else None
        if self.pooling is not None:
            nn.init.zeros_(self.pooling.weight)
            nn.init.zeros_(self.pooling.bias)

    @classmethod
    def from_diffusers(
        cls,
        id_or_path: str | Path,
        *,
        autoencoder: Block | None,
        num_steps: int = 50,
        pooled: Literal["zeros", "mean", "learned"] = "zeros",
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | int | None = None,
    ) -> Self:
        """The network and the scheduler of a pipeline of diffusers, without its text encoders; in evaluation mode.

        Args:
            id_or_path: a folder that holds ``scheduler`` and ``unet`` or ``transformer``, or ``organisation/name`` on the Hub.
            autoencoder: see the class; the pipeline's own is in its folder ``vae``.
            num_steps: of the sampler.
            pooled: see the class.
            revision: branch, tag or commit on the Hub.
            dtype: of the network's tensors; None keeps what the files hold.
            device: where all parts go.

        Raises:
            FileNotFoundError, PermissionError, ConnectionError: there is no such pipeline, or it cannot be reached.
            ValueError: a network of a kind that is not known, or files that do not match.
        """
        found = find_pipeline(id_or_path, revision)
        network = DiffusersDenoiser.from_pretrained(
            id_or_path, subfolder=found.network, revision=found.revision, dtype=dtype, device=device
        )
        sampler = DiffusersSampler.from_published(found.scheduler, num_steps, even=network.kind.even)
        made = cls(network=network, sampler=sampler, autoencoder=autoencoder, pooled=pooled).eval()
        return made if device is None else made.to(device)

    @property
    def condition_dim(self) -> int:
        """D."""
        return self.network.condition_dim

    @property
    def channels(self) -> int:
        """C."""
        return self.network.channels

    @property
    def patch(self) -> int:
        """Rows and columns of latents that the network makes one token of."""
        return self.network.patch

    def check_size(self, height: int, width: int, *, num_conditions: int = 1) -> None:
        """Refuses images that the network cannot make.

        Raises:
            ValueError: sides that are no multiples of ``step``, or more than the network has places for.
        """
        super().check_size(height, width)
        _, rows, columns = self._latent_shape((height, width))
        self.network.check_sizes(rows, columns, num_conditions)

    def forward(
        self,
        conditions: Float[Tensor, "B M D"],
        unconditional: Float[Tensor, "B M2 D"] | None = None,
        *,
        size: tuple[int, int] = (512, 512),
        guidance: float = 1.0,
        generator: Generator | None = None,
    ) -> Float[Tensor, "B 3 H W"]:
        """Pixels in [0, 1]; see ``sample``."""
        return self.sample(conditions, unconditional=unconditional, guidance=guidance, size=size, generator=generator)

    def _predict(
        self, x: Tensor, time: Tensor, conditions: Tensor, real: Tensor | None, size: tuple[int, int]
    ) -> Float[Tensor, "B C h w"]:
        pooled = None
        if self.pooled != "zeros":
            mean = mean_of(conditions, real)
            pooled = mean if self.pooling is None else self.pooling(mean.to(self.pooling.weight.dtype))
        return self.network(x, time, conditions, size=size, real=real, pooled=pooled)
