"""Emu with its image decoder: prompts of text and images to pixels.

Shapes: B rows, N embeddings of an image, C their width, H and W pixels.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.layers.diffusion.denoising_samplers import DiffusersSampler
from mmblocks.models.emu.format import EmuFormat
from mmblocks.models.emu.model import Emu
from mmblocks.models.emu.regressing import RegressingModel
from mmblocks.pixels.latent_generator import LatentGenerator
from mmblocks.pixels.state_generator import StateGenerator
from mmblocks.sequence.batches import Sample
from mmblocks.tokenizers.diffusers_autoencoder import DiffusersAutoencoder
from mmblocks.vocabulary.text_tokenizers import TextTokenizer

ENCODER = "multimodal_encoder"
"""The folder of the language model and the image tower."""


class EmbeddingImages(Block, has_name=False):
    """A model that regresses embeddings, and a decoder that they are the conditions of.

    A subclass keeps them as ``model`` and ``decoder``.
    """

    model: RegressingModel
    decoder: LatentGenerator
    folder_layout: ClassVar[str]
    """In which layout the model lies in a folder of the pipeline."""

    def forward(
        self,
        prompts: Sequence[Sample],
        format: EmuFormat | None = None,
        *,
        size: tuple[int, int] | None = None,
        guidance: float | None = None,
        tokenizer: TextTokenizer | None = None,
        noise: Float[Tensor, "B 4 h w"] | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "B 3 H W"]:
        """An image for each prompt, in [0, 1].

        Args:
            prompts: such as ``EmuFormat.write`` makes them of text, images, or both.
            format: whose ids count; the published ones if None.
            size: height and width in pixels; those of the format if None.
            guidance: of the decoder; that of the format if None, 1 for none. What is guided against are the embeddings of an empty
                prompt, which are regressed beside the others.
            tokenizer: for strings.
            noise: the latents to begin with, of unit variance, in place of a generator.
            generator: source of randomness.

        Raises:
            ValueError: another size, or a guidance below 1.
        """
        form = format or self.model.format
        guidance, size = form.guidance if guidance is None else guidance, size or form.size
        rows = [*prompts, *([form.write([])] if guidance != 1 else [])]
        found = self._decoded(self.model.embeddings(rows, form, tokenizer=tokenizer))
        conditions, nothing = found[: len(prompts)], found[len(prompts) :]
        against = nothing.expand_as(conditions) if len(nothing) else None
        return self.decoder.sample(
            conditions, unconditional=against, guidance=guidance, size=size, noise=noise, generator=generator
        )

    def to_diffusers(self, folder: str | Path) -> None:
        """Writes the folder that ``from_diffusers`` reads: model, network, autoencoder and scheduler in folders of their own.

        Raises:
            ValueError: a sampler that is no scheduler of diffusers, or a part that the authors' files cannot have.
        """
        folder, sampler = Path(folder), self.decoder.sampler
        if not isinstance(sampler, DiffusersSampler):
            raise ValueError(f"sampler is a {type(sampler).__name__}; accepted: a DiffusersSampler")
        self.model.to_upstream(folder / ENCODER, layout=self.folder_layout)
        self._network().to_upstream(folder / "unet", layout="diffusers")
        cast(Block, self.decoder.autoencoder).to_upstream(folder / "vae", layout="diffusers")
        (folder / "scheduler").mkdir(exist_ok=True)
        config = json.dumps({"_class_name": sampler.scheduler, **sampler.options}, indent=2)
        (folder / "scheduler" / "scheduler_config.json").write_text(config + "\n", encoding="utf-8")

    def _network(self) -> Block:
        """The network in latents."""
        raise NotImplementedError

    def _decoded(self, embeddings: Tensor) -> Tensor:
        """Embeddings in the dtype of the network, and where it is."""
        like = next(self._network().parameters())
        return embeddings.to(like.device, like.dtype)


class EmuGen(EmbeddingImages):
    """Emu and the Stable Diffusion that was tuned to its embeddings: prompts of text and images to images.

        painter = EmuGen.from_diffusers("Emu/pretrain")     # the authors' folder
        pixels = painter([EMU.write(["a dog with a hat"])], tokenizer=tokenizer)

    Emu-I, which is tuned to instructions, does not go with the decoder.

    Args:
        model: which regresses the embeddings.
        decoder: which reads them as they are.

    Raises:
        ValueError: a decoder of conditions of another width.

    Source: Emu (arXiv 2307.05222; baaivision/Emu, Emu1).

    Examples:
        >>> import torch
        >>> from mmblocks.layers import DiffusersSampler
        >>> from mmblocks.models import Emu, EmuGen
        >>> from mmblocks.models.emu.format import EmuFormat
        >>> from mmblocks.pixels import DiffusersDenoiser, StateGenerator
        >>> vision = {"image_size": (28, 28), "dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
        >>> former = {"num_queries": 3, "hidden_dim": 8, "num_layers": 1, "num_heads": 2, "head_dim": 4, "mlp_dim": 8}
        >>> sizes = {"vocab_size": 20, "dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "embed_dim": 8}
        >>> down, up = ["DownBlock2D", "CrossAttnDownBlock2D"], ["CrossAttnUpBlock2D", "UpBlock2D"]
        >>> blocks = {"down_block_types": down, "up_block_types": up, "block_out_channels": [4, 8], "layers_per_block": 1}
        >>> heads = {"in_channels": 3, "out_channels": 3, "norm_num_groups": 2, "attention_head_dim": 2, "cross_attention_dim": 16}
        >>> decoder = StateGenerator(
        ...     network=DiffusersDenoiser(kind="UNet2DConditionModel", arguments={**blocks, **heads}),
        ...     sampler=DiffusersSampler(scheduler="DDIMScheduler", num_steps=2),
        ... )
        >>> painter = EmuGen(model=Emu(**sizes, vision=vision, former=former), decoder=decoder).eval()
        >>> ids = {"<s>": 1, "</s>": 2, "[IMG]": 17, "[/IMG]": 18}
        >>> form = EmuFormat(ids=ids, image_tokens=3, frame_tokens=3, image_size=(28, 28), size=(8, 12), guidance=7.5)
        >>> tuple(painter([form.write([torch.rand(3, 28, 28)])], form).shape)
        (1, 3, 8, 12)
    """

    model: Emu
    decoder: StateGenerator
    folder_layout = "emu"

    def __init__(self, *, model: Emu, decoder: StateGenerator) -> None:
        super().__init__()
        if decoder.condition_dim != model.trunk.dim:
            found, accepted = decoder.condition_dim, model.trunk.dim
            raise ValueError(f"the decoder reads conditions of width {found}; accepted: that of the model, {accepted}")
        self.model, self.decoder = model, decoder

    @classmethod
    def from_diffusers(
        cls,
        id_or_path: str | Path,
        *,
        num_steps: int = 50,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | int | None = None,
    ) -> Self:
        """From the authors' folder, in evaluation mode.

        Args:
            id_or_path: a folder, or ``organisation/name`` on the Hub, that holds ``multimodal_encoder``, ``unet``, ``vae`` and
                ``scheduler``. The safety checker is left.
            num_steps: of the sampler.
            revision: branch, tag or commit on the Hub.
            dtype: of all tensors; None keeps what the files hold.
            device: where they go.

        Raises:
            FileNotFoundError, PermissionError, ConnectionError: a part is not there, or cannot be reached.
            ValueError: files that do not match.
        """
        files: dict[str, Any] = {"revision": revision, "dtype": dtype, "device": device}
        model = Emu.from_pretrained(id_or_path, subfolder=ENCODER, layout=cls.folder_layout, **files)
        autoencoder = DiffusersAutoencoder.from_pretrained(id_or_path, subfolder="vae", **files)
        decoder = StateGenerator.from_diffusers(id_or_path, autoencoder=autoencoder, num_steps=num_steps, **files)
        return cls(model=model, decoder=decoder).eval()

    def _network(self) -> Block:
        return cast(Block, self.decoder.network)
