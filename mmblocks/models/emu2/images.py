"""Emu2-Gen: Emu2 with its image decoder. Prompts to images, and images through their embeddings and back.

Shapes: B images, H and W pixels.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import only
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.configurable import parameters
from mmblocks.heads.regression import RegressionHead
from mmblocks.layers.diffusion.denoising_samplers import DiffusersSampler
from mmblocks.models.emu.images import ENCODER, EmbeddingImages
from mmblocks.models.emu.layout import frequencies
from mmblocks.models.emu2.layout import EMU2_HARMLESS, emu2_config, emu2_own_config, emu2_rules
from mmblocks.models.emu2.model import Emu2
from mmblocks.pixels.conditional_unet import ConditionalUNet
from mmblocks.pixels.diffusion_decoder import EMU2_SCHEDULE, DiffusionDecoder
from mmblocks.pixels.pipelines import find_pipeline
from mmblocks.tokenizers.diffusers_autoencoder import DiffusersAutoencoder
from mmblocks.trunks.derived_tables import frequencies_differ

EMU2_UNET: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 1792,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 3328,
}
"""diffusers' arguments of Emu2-Gen's U-Net: SDXL's, whose conditions and their mean are Emu2's embeddings."""

SDXL_VAE: dict[str, Any] = {
    "sample_size": 1024,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.13025,
}
"""Those of its autoencoder, which is SDXL's."""

(_UNET,) = (layout for layout in ConditionalUNet.layouts if layout.name == "emu2-gen")
(_VAE,) = DiffusersAutoencoder.layouts
_SCHEDULER = "EulerDiscreteScheduler"


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the authors keep in folders beside their code, under the names of the parts; nothing where there is none."""
    if not config:
        return {}
    unet, vae = _UNET.config, _VAE.config
    only(config["scheduler"], "_class_name", _SCHEDULER)
    sampler = DiffusersSampler.from_published(config["scheduler"])
    return {
        "model": emu2_config(config[ENCODER]),
        "decoder": {
            "unet": {} if unet is None else dict(unet(config["unet"])),
            "autoencoder": {} if vae is None else dict(vae(config["vae"])),
            "sampler": {"scheduler": _SCHEDULER, "options": sampler.options},
        },
    }


def _published_config(arguments: Arguments) -> dict[str, Any]:
    with torch.device("meta"):
        model, decoder = _model(arguments["model"]), _decoder(arguments["decoder"])
    unet, vae, sampler = _UNET.published_config, _VAE.published_config, decoder.sampler
    if not isinstance(sampler, DiffusersSampler) or unet is None or vae is None or decoder.autoencoder is None:
        raise ValueError(f"sampler is a {type(sampler).__name__}; accepted: a DiffusersSampler")
    return {
        ENCODER: emu2_own_config(model.config),
        "unet": unet(decoder.unet.config),
        "vae": vae(decoder.autoencoder.config),
        "scheduler": {"_class_name": sampler.scheduler, **sampler.options},
    }


def _model(model: Emu2 | Mapping[str, Any] | None) -> Emu2:
    return model if isinstance(model, Emu2) else Emu2(**(model or {}))


def _decoder(decoder: DiffusionDecoder | Mapping[str, Any] | None) -> DiffusionDecoder:
    """The decoder, or one of its parts' arguments; published ones where there are none."""
    if isinstance(decoder, DiffusionDecoder):
        return decoder
    parts = decoder or {}
    unet = ConditionalUNet(**(parts.get("unet") or {"arguments": EMU2_UNET}))
    autoencoder = DiffusersAutoencoder(**(parts.get("autoencoder") or {"kind": "AutoencoderKL", "arguments": SDXL_VAE}))
    sampler = DiffusersSampler(**(parts.get("sampler") or {"scheduler": _SCHEDULER, "options": EMU2_SCHEDULE}))
    return DiffusionDecoder(unet=unet, autoencoder=autoencoder, sampler=sampler)


def _frequencies_differ(table: Tensor, arguments: Arguments) -> float:
    model = arguments["model"]
    given = model.config if isinstance(model, Emu2) else model or {}
    usual = {name: parameter.default for name, parameter in parameters(Emu2).items()}
    return frequencies_differ(table, {**usual, **given})


_PREFIX = f"{ENCODER}."

_EMU2_GEN = Layout(
    "emu2-gen",
    (
        *emu2_rules(_PREFIX, _PREFIX, "model."),
        *(Rule(rule.theirs, f"decoder.unet.{rule.ours}") for rule in _UNET.rules if isinstance(rule, Rule)),
        *(Rule(f"vae.{rule.theirs}", f"decoder.autoencoder.{rule.ours}") for rule in _VAE.rules if isinstance(rule, Rule)),
    ),
    ignored=("safety_checker.*",),
    config=_config,
    published_config=_published_config,
    derived=(replace(frequencies(f"{_PREFIX}decoder.lm."), difference=_frequencies_differ),),
    harmless=(
        *(f"{_PREFIX}{name}" for name in EMU2_HARMLESS),
        *(f"unet.{name}" for name in _UNET.harmless),
        *(f"vae.{name}" for name in _VAE.harmless),
    ),
)
"""The authors' own file, which holds all parts."""


class Emu2Gen(EmbeddingImages):
    """Prompts of text and images to images, and images through their embeddings and back (``autoencode``).

        painter = Emu2Gen.from_diffusers("BAAI/Emu2-Gen")                                # the Hub's folders
        painter = Emu2Gen.from_pretrained("Emu2-Gen_pytorch_model.bf16.safetensors")     # the authors' one file
        pixels = painter([EMU2.write([dog, "the dog on a boat"])], tokenizer=tokenizer)

    A prompt of one image alone stands for ``autoencode`` in the authors' code. The decoder is told the size of the image as that of
    the original too, where the authors' code says 1024 x 1024 whatever the size.

    Args:
        model: an ``Emu2``, or its arguments.
        decoder: the ``DiffusionDecoder``, or the arguments of its "unet", "autoencoder" and "sampler".

    The defaults are those of Emu2-Gen.

    Raises:
        ValueError: a decoder of conditions of another width than the embeddings'.

    Source: Emu2 (arXiv 2312.13286; baaivision/Emu).

    Examples:
        >>> import torch
        >>> from dataclasses import replace
        >>> from mmblocks.models import Emu2Gen
        >>> from mmblocks.models.emu2.format import EMU2
        >>> vision = {"image_size": (28, 28), "patch_size": 7, "dim": 6, "num_layers": 1, "num_heads": 1, "mlp_dim": 8}
        >>> model = {"vocab_size": 20, "dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "num_tokens": 4}
        >>> down, up = ["DownBlock2D", "CrossAttnDownBlock2D"], ["CrossAttnUpBlock2D", "UpBlock2D"]
        >>> blocks = {"down_block_types": down, "up_block_types": up, "block_out_channels": [4, 8], "layers_per_block": 1}
        >>> told = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 30}
        >>> heads = {"norm_num_groups": 2, "attention_head_dim": 2, "cross_attention_dim": 6}
        >>> decoder = {
        ...     "unet": {"arguments": {**blocks, **told, **heads}},
        ...     "autoencoder": {"kind": "AutoencoderKL", "arguments": {"block_out_channels": [4], "norm_num_groups": 2}},
        ...     "sampler": {"scheduler": "EulerDiscreteScheduler", "num_steps": 2},
        ... }
        >>> painter = Emu2Gen(model={**model, "frame_tokens": 4, "vision": vision}, decoder=decoder).eval()
        >>> form = replace(EMU2, ids={"<s>": 1, "</s>": 2, "[IMG]": 17, "[/IMG]": 18}, size=(8, 12))
        >>> pixels = torch.rand(3, 28, 28)
        >>> tuple(painter([form.write([pixels])], form).shape), tuple(painter.autoencode(pixels[None], size=(8, 8)).shape)
        ((1, 3, 8, 12), (1, 3, 8, 8))
    """

    model: Emu2
    decoder: DiffusionDecoder
    layouts: ClassVar[tuple[Layout, ...]] = (_EMU2_GEN,)
    folder_layout = "emu2-hub"

    def __init__(
        self, *, model: Emu2 | dict[str, Any] | None = None, decoder: DiffusionDecoder | dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.model, self.decoder = _model(model), _decoder(decoder)
        width = cast(RegressionHead, self.model.outputs["embeddings"]).target_dim
        if self.decoder.condition_dim != width:
            found = self.decoder.condition_dim
            raise ValueError(f"the decoder reads conditions of width {found}; accepted: that of the embeddings, {width}")

    @torch.no_grad()
    def autoencode(
        self,
        pixels: Float[Tensor, "B 3 H W"],
        *,
        size: tuple[int, int] | None = None,
        guidance: float | None = None,
        noise: Float[Tensor, "B 4 h w"] | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "B 3 H2 W2"]:
        """Images through their embeddings and back, without the language model.

        Args:
            pixels: in [0, 1], of the tower's size.
            size: height and width of the result; the published ones if None.
            guidance: of the decoder; the published one if None, 1 for none. What is guided against are the embeddings of an image
                that is all zeros once it is normalised: one of CLIP's mean colour.
            noise: the latents to begin with, of unit variance, in place of a generator.
            generator: source of randomness.

        Raises:
            TypeError, ValueError: images that the tower does not take; another size, or a guidance below 1.
        """
        form, latents = self.model.format, self.model.latents
        guidance = form.guidance if guidance is None else guidance
        conditions, against = self._decoded(latents.features(pixels).flatten(1, 2)), None
        if guidance != 1:
            colour = pixels.new_tensor(latents.mean)[:, None, None].expand_as(pixels[0])
            against = self._decoded(latents.features(colour[None]).flatten(1, 2)).expand_as(conditions)
        return self.decoder.sample(
            conditions, unconditional=against, guidance=guidance, size=size or form.size, noise=noise, generator=generator
        )

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
        """From the Hub's folders, in evaluation mode.

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
        found = find_pipeline(id_or_path, revision)
        files: dict[str, Any] = {"revision": found.revision, "dtype": dtype, "device": device}
        model = Emu2.from_pretrained(id_or_path, subfolder=ENCODER, layout=cls.folder_layout, **files)
        unet = ConditionalUNet.from_pretrained(id_or_path, subfolder="unet", layout="diffusers", **files)
        autoencoder = DiffusersAutoencoder.from_pretrained(id_or_path, subfolder="vae", **files)
        sampler = DiffusersSampler.from_published(found.scheduler, num_steps)
        return cls(model=model, decoder=DiffusionDecoder(unet=unet, autoencoder=autoencoder, sampler=sampler)).eval()

    def _network(self) -> Block:
        return self.decoder.unet
