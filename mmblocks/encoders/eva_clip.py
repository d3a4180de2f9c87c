"""EVA-CLIP: an image tower and a text tower whose embeddings can be compared.

Shapes: B images, C classes, N texts, H and W pixels, L places of a text, K patches that are kept, E width of the embeddings.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from PIL import Image as PILImage
from torch import Generator, Tensor, nn
from torch.nn.functional import normalize

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.encoders.eva_clip_layouts import clip_layouts
from mmblocks.encoders.eva_clip_text import EVACLIPText
from mmblocks.encoders.eva_clip_vision import EVACLIPVision
from mmblocks.layers.towers.eva import rebuilt
from mmblocks.support.pickling import weightless

PHOTO = ("a photo of a {}.",)
"""The plainest template of a class's description."""


class Embeddings(NamedTuple):
    """What a contrastive loss compares.

    Attributes:
        image: embeddings of length one.
        text: of the texts that belong to the images.
        scale: factor of the similarities.
    """

    image: Float[Tensor, "B E"]
    text: Float[Tensor, "B E"]
    scale: Float[Tensor, ""]


class EVACLIP(Block):
    """Images and texts to embeddings of one space, and what follows: similarities and classes without training.

        clip = EVACLIP.from_pretrained("EVA02_CLIP_L_psz14_s4B.pt", **eva_clip_arguments("EVA02_CLIP_L_psz14_s4B"))
        pixels = clip.preprocess(image)[None]
        clip.classify(pixels, clip.classifier(["cat", "dog"]))                      # (1, 2)
        clip.similarity(clip.encode_image(pixels), clip.encode_text(["two cats on a sofa"]))

    The published ``.pt`` files come without a config, so their arguments are given: ``eva_clip_arguments`` knows them by name.
    A folder from the Hub needs none. The image tower alone is loaded from the same files by ``EVACLIPVision``.

    Args:
        vision: the image tower, or its arguments.
        text: the text tower, or its arguments.

    Raises:
        ValueError: towers whose embeddings have different widths.

    Source: EVA-CLIP (arXiv 2303.15389), EVA-CLIP-18B (arXiv 2402.04252); baaivision/EVA.

    Examples:
        >>> import torch
        >>> from mmblocks.encoders import EVACLIP
        >>> tower = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "image_size": (28, 28), "patch_size": 14}
        >>> text = {"embed_dim": 8, "dim": 16, "num_layers": 1, "num_heads": 2}
        >>> clip = EVACLIP(vision={"tower": tower, "embed_dim": 8}, text=text).eval()
        >>> pixels = torch.rand(2, 3, 28, 28)
        >>> tuple(clip.classify(pixels, clip.classifier(["cat", "dog", "bird"])).shape)
        (2, 3)
    """

    layouts: ClassVar[tuple[Layout, ...]] = clip_layouts()

    def __init__(self, *, vision: EVACLIPVision | dict[str, Any], text: EVACLIPText | dict[str, Any]) -> None:
        super().__init__()
        self.vision = vision if isinstance(vision, EVACLIPVision) else EVACLIPVision(**vision)
        self.text = text if isinstance(text, EVACLIPText) else EVACLIPText(**text)
        if self.vision.embed_dim != self.text.embed_dim:
            raise ValueError(f"embed_dim is {self.vision.embed_dim} of images and {self.text.embed_dim} of texts; accepted: equal")
        self.logit_scale = nn.Parameter(torch.full((), math.log(1 / 0.07)))

    @property
    def scale(self) -> Float[Tensor, ""]:
        """What similarities are multiplied by; the parameter is its logarithm. CLIP's training keeps it at 100 or below."""
        return self.logit_scale.exp()

    def forward(
        self,
        pixels: Float[Tensor, "B 3 H W"],
        ids: Int[Tensor, "B L"],
        *,
        keep: Int[Tensor, "B K"] | None = None,
        generator: Generator | None = None,
    ) -> Embeddings:
        """What a contrastive loss takes, from images and the ids of their texts. Arguments and errors as for the two encoders."""
        return Embeddings(self.encode_image(pixels, keep=keep, generator=generator), self.encode_text(ids), self.scale)

    def encode_image(
        self,
        pixels: Float[Tensor, "B 3 H W"],
        *,
        keep: Int[Tensor, "B K"] | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "B E"]:
        """Embeddings of length one; arguments and errors as for ``EVACLIPVision.embed``."""
        return normalize(self.vision.embed(pixels, keep=keep, generator=generator), dim=-1)

    def encode_text(self, texts: str | Sequence[str] | Int[Tensor, "N L"]) -> Float[Tensor, "N E"]:
        """Embeddings of length one, from texts or from their ids; errors as for ``EVACLIPText``."""
        ids = texts if isinstance(texts, Tensor) else self.text.tokenize(texts)
        return normalize(self.text(ids), dim=-1)

    @weightless
    def preprocess(self, image: PILImage.Image) -> Float[Tensor, "3 H W"]:
        """The image as the image tower wants it; see ``EVACLIPVision.preprocess``."""
        return self.vision.preprocess(image)

    def similarity(self, image: Float[Tensor, "B E"], text: Float[Tensor, "N E"]) -> Float[Tensor, "B N"]:
        """Scaled cosines of every image and every text, from embeddings of length one."""
        return self.scale * image @ text.T

    def classifier(self, names: Sequence[str], templates: Sequence[str] = PHOTO) -> Float[Tensor, "C E"]:
        """One embedding for each class: the mean over its descriptions, of length one again.

        Args:
            names: of the classes.
            templates: descriptions with ``{}`` where the name stands.

        Raises:
            ValueError: no name, no template, or a template without a place for the name.
        """
        if isinstance(names, str) or not names:
            raise ValueError(f"names are {names!r}; accepted: a list of at least one name")
        if isinstance(templates, str) or not templates or not all("{}" in template for template in templates):
            raise ValueError(f"templates are {templates!r}; accepted: a list of texts, each with {{}} where the name stands")
        # One class at a time: a thousand classes with eighty templates are more texts than fit at once.
        means = [self.encode_text([template.replace("{}", name) for template in templates]).mean(dim=0) for name in names]
        return normalize(torch.stack(means), dim=-1)

    def classify(self, pixels: Float[Tensor, "B 3 H W"], classifier: Float[Tensor, "C E"]) -> Float[Tensor, "B C"]:
        """How probable each class is for each image.

        Args:
            pixels: in [0, 1].
            classifier: from ``classifier``.
        """
        return self.similarity(self.encode_image(pixels), classifier).softmax(dim=-1)

    def resized(self, image_size: tuple[int, int], *, patch_size: int | None = None) -> "EVACLIP":
        """The same for images of another size; see ``EvaTower.resized``."""
        vision = self.vision.resized(image_size, patch_size=patch_size)
        tensors = self.state_dict(keep_vars=True)
        tensors.update({f"vision.{name}": tensor for name, tensor in vision.state_dict(keep_vars=True).items()})
        return rebuilt(self, tensors, vision=vision.config, text=self.text.config)
