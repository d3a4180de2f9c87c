"""ZeroShot: pictures named and found by texts, without training.

Shapes: P pictures, N texts, E width of the embeddings.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor

from mmblocks.encoders.eva_clip import EVACLIP, PHOTO
from mmblocks.encoders.eva_clip_presets import EVA_CLIP_MODELS, eva_clip_arguments
from mmblocks.support.pictures import Picture, picture_of


class Match(NamedTuple):
    """A picture that a text has found.

    Attributes:
        place: of the picture, among those that were searched.
        similarity: cosine of the two embeddings, in [-1, 1].

    Examples:
        >>> from mmblocks.pipelines import Match
        >>> Match(place=1, similarity=0.31)
        Match(place=1, similarity=0.31)
    """

    place: int
    similarity: float


class ZeroShot:
    """Two towers whose embeddings can be compared, over pictures as people have them.

        zero_shot = ZeroShot.from_pretrained("EVA02_CLIP_L_psz14_s4B.pt")
        zero_shot.classify(["pet.jpg"], ["cat", "dog"])          # [{"cat": 0.98, "dog": 0.02}]
        zero_shot.search(["a.jpg", "b.jpg"], "a red bicycle")    # [Match(place=1, similarity=0.31), ...]

    Args:
        model: the towers, in evaluation mode.
        batch_size: pictures, or texts, computed at a time.

    Raises:
        ValueError: a batch of none.

    Source: CLIP (arXiv 2103.00020), whose way of classifying it is; EVA-CLIP (arXiv 2303.15389).

    Examples:
        >>> import torch
        >>> from mmblocks import ZeroShot
        >>> from mmblocks.encoders import EVACLIP
        >>> tower = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "image_size": (28, 28), "patch_size": 14}
        >>> text = {"embed_dim": 8, "dim": 16, "num_layers": 1, "num_heads": 2}
        >>> zero_shot = ZeroShot(EVACLIP(vision={"tower": tower, "embed_dim": 8}, text=text).eval())
        >>> picture = torch.zeros(3, 40, 30, dtype=torch.uint8)
        >>> sorted(zero_shot.classify([picture], ["cat", "dog"])[0])
        ['cat', 'dog']
    """

    def __init__(self, model: EVACLIP, *, batch_size: int = 32) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; accepted: 1 or more")
        self.model, self.batch_size = model, batch_size

    @classmethod
    def from_pretrained(cls, id_or_path: str | Path, *, batch_size: int = 32, **options: Any) -> Self:  # those of Block
        """An EVA-CLIP from the authors' file, whose name says its sizes; or from a folder, or from the Hub.

        Args:
            id_or_path: see ``Block.from_pretrained``.
            batch_size: see the class.
            options: those of ``Block.from_pretrained``, such as ``dtype`` and ``device``.

        Raises:
            As ``Block.from_pretrained``.
        """
        name = Path(id_or_path).name.removesuffix(".pt")
        sizes = eva_clip_arguments(name) if name in EVA_CLIP_MODELS else {}
        return cls(EVACLIP.from_pretrained(id_or_path, **{**sizes, **options}), batch_size=batch_size)

    def classify(
        self, pictures: Sequence[Picture], labels: Sequence[str], *, templates: Sequence[str] = PHOTO, progress: bool = True
    ) -> list[dict[str, float]]:
        """How probable each label is for each picture, the likeliest first.

        Args:
            pictures: PIL images, paths, bytes, arrays or tensors.
            labels: names of classes.
            templates: descriptions with ``{}`` where the name stands; the mean over them stands for a class.
            progress: show a bar in a terminal.

        Raises:
            TypeError, ValueError, FileNotFoundError: no picture, one that is none, no label or one twice, or a template without a
                place for the name.
        """
        if len(set(labels)) < len(labels):
            raise ValueError(f"labels are {list(labels)}; accepted: each one once")
        _check_pictures(pictures)
        with torch.no_grad():
            classes = self.model.classifier(labels, templates)
            scores = self.model.similarity(self.embed_pictures(pictures, progress=progress), classes).float().softmax(dim=-1)
        ordered = [sorted(zip(labels, row, strict=True), key=lambda one: -one[1]) for row in scores.tolist()]
        return [dict(row) for row in ordered]

    def search(self, pictures: Sequence[Picture], text: str, *, top: int = 5, progress: bool = True) -> list[Match]:
        """The pictures that fit a text best, best first.

        Args:
            pictures: see ``classify``.
            text: what they should show.
            top: how many.
            progress: show a bar in a terminal.

        Raises:
            TypeError, ValueError, FileNotFoundError: no picture, one that is none, an empty text or one that is too long, or a
                ``top`` below 1.
        """
        if top < 1:
            raise ValueError(f"top is {top}; accepted: 1 or more")
        found = self.similarity(pictures, [text], progress=progress)[:, 0]
        best = found.topk(min(top, len(found)))
        return [Match(place, value) for place, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)]

    def similarity(self, pictures: Sequence[Picture], texts: Sequence[str], *, progress: bool = True) -> Float[Tensor, "P N"]:
        """Cosines of every picture and every text; arguments and errors as of ``search``."""
        _check_pictures(pictures)
        with torch.no_grad():
            embedded = torch.cat([self.model.encode_text(texts[first : first + self.batch_size]) for first in self._firsts(texts)])
            return (self.embed_pictures(pictures, progress=progress) @ embedded.T).float().cpu()

    @torch.no_grad()
    def embed_pictures(self, pictures: Sequence[Picture], *, progress: bool = True) -> Float[Tensor, "P E"]:
        """Embeddings of length one; arguments and errors as of ``classify``."""
        from tqdm import tqdm  # huggingface-hub brings it

        _check_pictures(pictures)
        like = self.model.logit_scale
        made = []
        for first in tqdm(list(self._firsts(pictures)), unit="batch", disable=None if progress else True, leave=False):
            pixels = [
                self.model.preprocess(picture_of(one, f"pictures[{first + index}]"))
                for index, one in enumerate(pictures[first : first + self.batch_size])
            ]
            made.append(self.model.encode_image(torch.stack(pixels).to(like.device)))
        return torch.cat(made)

    def _firsts(self, values: Sequence[object]) -> Iterator[int]:
        """Where each batch begins."""
        if isinstance(values, str) or not len(values):
            raise ValueError(f"{values!r} was given; accepted: a list of at least one")
        return iter(range(0, len(values), self.batch_size))


def _check_pictures(pictures: Sequence[Picture]) -> None:
    if isinstance(pictures, str | bytes) or not len(pictures):
        raise ValueError(f"pictures is {pictures!r:.60}; accepted: a list of at least one picture")
