"""Models that read images as embeddings and write such embeddings, one after the other: what Emu and Emu2 share.

Shapes: B rows, N embeddings of an image, M of all images of a batch, C their width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from mmblocks.compose import ModelOutput, MultimodalModel
from mmblocks.generation.continuous import VectorBlock, VectorGrammar
from mmblocks.heads.language import LMHead
from mmblocks.models.emu.format import EmuFormat
from mmblocks.roles import Cache
from mmblocks.sequence.batches import Batch, Sample
from mmblocks.sequence.rows import Placed
from mmblocks.sequence.segments import Vectors, text
from mmblocks.vocabulary.text_tokenizers import TextTokenizer

_NAME = "embeddings"
"""Of the input that reads embeddings, and of the head that regresses them."""


class RegressingModel(MultimodalModel, has_name=False):
    """A model with inputs "text", "vision" (images) and "embeddings" (what becomes of images), and heads "text" and "embeddings".

    A subclass has ``format``, ``image_grid`` and ``features``.
    """

    format: ClassVar[EmuFormat]
    """How the published model is prompted."""

    @property
    def image_grid(self) -> tuple[int, ...]:
        """Rows and columns of an image's embeddings, or their number."""
        raise NotImplementedError

    def features(self, images: Sequence[Float[Tensor, "3 H W"]]) -> Float[Tensor, "M C"]:
        """The embeddings that the input "embeddings" reads and the head "embeddings" learns, image after image."""
        raise NotImplementedError

    def forward(
        self,
        batch: Batch,
        *,
        given: Mapping[str, Mapping[str, Any]] | None = None,
        generator: Generator | None = None,
    ) -> ModelOutput:
        """As of ``MultimodalModel``, where images that the input "vision" reads are learned too, as published pretraining does.

        ``losses["embeddings"]`` is their squared error, the mean over channels and embeddings; ``losses["text"]`` the cross entropy
        of text with that target. The published recipe adds both; models that chat are tuned with the second alone. The state of
        the id that opens an image predicts its first embedding, that of each embedding the next one, and that of the last nothing.
        Nothing predicts the ids around an image where these have no target, as published, nor the first embedding of an image at
        the very beginning of a sample. Embeddings are constants where they are predicted, and have gradients where they are read.
        """
        return super().forward(self.with_embeddings(batch), given=given, generator=generator)

    def with_embeddings(self, batch: Batch) -> Batch:
        """The batch with embeddings in place of the images that "vision" reads, so that they are computed once, and with labels."""
        images = batch.inputs.get("vision")
        if images is None:
            return batch
        values, places = self.features(cast(list[Tensor], images.values)), images.places
        if len(values) != len(places):
            raise ValueError(f"images made {len(values)} embeddings for {len(places)} places; accepted: the images of the batch")
        document, column = batch.table.document.flatten(), places % batch.ids.shape[1]
        learned = (column > 0) & (document[places - 1] == document[places])  # nothing predicts a sample's first token
        labels = Placed(values.detach()[learned], places[learned] - 1)
        inputs = {name: placed for name, placed in batch.inputs.items() if name != "vision"}
        weights = dict(batch.weights)
        if _NAME in weights:
            weights[_NAME] = torch.cat([weights[_NAME], weights[_NAME].new_ones(len(labels.places))])
        return batch._replace(
            inputs={**inputs, _NAME: _joined(inputs.get(_NAME), Placed(values, places))},
            targets={**batch.targets, _NAME: _joined(batch.targets.get(_NAME), labels)},
            weights=weights,
        )

    def image_grammar(self, format: EmuFormat | None = None, *, num_images: int = 1, stop: tuple[int, ...] = ()) -> VectorGrammar:
        """What ``generate`` may write: images, and text around them.

        Args:
            format: whose ids count; the published ones if None.
            num_images: how many images.
            stop: ids that end a row; without any, a row ends with its last image, which nothing closes.
        """
        form = format or self.format
        end = form.end if stop or num_images > 1 else None
        block = VectorBlock(begin=form.begin, end=end, size=self.image_grid, head=_NAME, input=_NAME)
        vocab_size = cast(LMHead, self.outputs["text"]).vocab_size
        return VectorGrammar(block, vocab_size=vocab_size, num_images=num_images, stop=stop)

    @torch.no_grad()
    def embeddings(
        self,
        prompts: Sequence[Sample],
        format: EmuFormat | None = None,
        *,
        tokenizer: TextTokenizer | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B N C"]:
        """The image that follows each prompt, as embeddings: one pass of the trunk for each, on a cache of what came before.

        Args:
            prompts: such as ``EmuFormat.write`` makes them; the id that opens the image is added here.
            format: whose ids count; the published ones if None.
            tokenizer: for strings.
            cache: an empty cache of one's own; see ``generate``.
        """
        opening = text([(format or self.format).begin])
        samples = [[*prompt, opening] for prompt in prompts]
        made = dict(self.generate(samples, self.image_grammar(format), tokenizer=tokenizer, cache=cache))
        images = [cast(Vectors, made[row]).values for row in range(len(prompts))]
        return torch.stack(images).flatten(1, -2)


def _joined(first: Placed | None, second: Placed) -> Placed:
    if first is None:
        return second
    values = torch.cat([cast(Tensor, first.values).to(cast(Tensor, second.values)), cast(Tensor, second.values)])
    return Placed(values, torch.cat([first.places, second.places]))
