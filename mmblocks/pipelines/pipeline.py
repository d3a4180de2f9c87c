"""Pipeline: a model with its tokenizers and prompts, to chat with and to draw with."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from PIL.Image import Image as PILImage
from torch import nn

from mmblocks.block import Block
from mmblocks.pipelines.replies import Event, Reply
from mmblocks.pipelines.running import Drawn, Row, events, seeds
from mmblocks.pipelines.wishes import Chat, Edit, GenerateImage, GenerateVideo, Settings, Wish, abilities_of, check_ability
from mmblocks.prompts.messages import Message, turns_of
from mmblocks.prompts.request import Components, NoText, Request
from mmblocks.sequence.batches import Sample
from mmblocks.support.pictures import Picture
from mmblocks.vocabulary.text_tokenizers import TextTokenizer


class Pipeline:
    """A model, its tokenizers, and the front that knows its prompts and settings.

    Args:
        front: prompts and settings; see ``mmblocks.prompts``. What it has no method for, the pipeline cannot do.
        model: reads and writes: a ``MultimodalModel``, or one that the front draws with in a way of its own.
        text_tokenizer: of its text; None where it reads none.
        image_tokenizer: between pictures and the codes or latents that the model reads or writes.
        decoder: from what it writes to pixels, where that is not the image tokenizer's work.

    Attributes:
        components: the parts, each of which can be replaced: ``pipe.components.image_tokenizer = mine``.

    Examples:
        >>> import torch
        >>> from mmblocks import ByteTokenizer, Decoder, LMHead, MultimodalModel, Pipeline, TextEmbedding
        >>> from mmblocks.prompts import ChatFormat, ReadingFront
        >>> tokenizer = ByteTokenizer(["<end>"])
        >>> model = MultimodalModel(
        ...     inputs={"text": TextEmbedding(vocab_size=257, dim=16)},
        ...     trunk=Decoder(dim=16, num_layers=1, num_heads=2, mlp_dim=16),
        ...     outputs={"text": LMHead(dim=16, vocab_size=257)},
        ... ).eval()
        >>> front = ReadingFront(format=ChatFormat(user="{}", reply=" = ", stop=("<end>",)))
        >>> pipe = Pipeline(front=front, model=model, text_tokenizer=tokenizer)
        >>> reply = pipe.chat([{"role": "user", "content": "one and one"}], max_tokens=3)
        >>> type(reply.text).__name__, pipe.abilities
        ('str', ('chat', 'training_samples'))
    """

    def __init__(
        self,
        *,
        front: object,
        model: Block,
        text_tokenizer: TextTokenizer | None = None,
        image_tokenizer: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        if not abilities_of(front):
            raise TypeError(f"front is a {type(front).__name__}; accepted: a front with chat, generate_image or edit, say")
        self.front = front
        self.components = Components(model, text_tokenizer or NoText(), image_tokenizer, decoder)

    @classmethod
    def from_pretrained(
        cls,
        id_or_path: str | Path,
        *,
        front: object = None,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | int | None = None,
        device_map: Mapping[str, Any] | str | None = None,
        **components: Any,  # parts to be used in place of the published ones, or where these are
    ) -> Self:
        """A published model with all that belongs to it, or a folder that ``save_pretrained`` wrote.

        Args:
            id_or_path: ``organisation/name`` on the Hub, or a folder.
            front: a name of ``list_fronts()``, or a front of one's own; None where the name tells.
            revision: branch, tag or commit on the Hub.
            dtype: of the model. Tokenizers of images keep theirs, since half precision changes codes.
            device: of all parts.
            device_map: of the model, in place of ``device``; see ``Block.from_pretrained``.
            components: by name of a component, an object, or the id or folder of another one.

        Raises:
            FileNotFoundError, PermissionError, ConnectionError: a part is not there, or cannot be had.
            ValueError: no front is known for this name, or several.
        """
        from mmblocks.pipelines import loading  # here, since nothing of it is needed to compose one's own

        where = {"dtype": dtype, "device": device, "device_map": device_map}
        found_front, parts = loading.load(id_or_path, front, revision, where, components)
        return cls(front=found_front, **parts)

    def save_pretrained(self, folder: str | Path, *, max_shard_size: int | str = "5GB") -> None:
        """Writes each component to a subfolder, and the front's name and settings to ``pipeline.json``; all in one step.

        Raises:
            TypeError: a component or a front that cannot be written; nothing has been written then.
        """
        from mmblocks.pipelines import loading

        loading.save(self.front, self.components, Path(folder), max_shard_size)

    @property
    def abilities(self) -> tuple[str, ...]:
        """The names of the methods that this model can do."""
        return abilities_of(self.front)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.components.model.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Moves all parts."""
        for part in (self.components.model, self.components.image_tokenizer, self.components.decoder):
            if part is not None:
                part.to(device)
        return self

    def chat(self, messages: Sequence[Message], *, stream: bool = False, **settings: Any) -> Any:
        """The answer to a conversation.

        Args:
            messages: see ``mmblocks.prompts.turns_of``; the last one is the user's.
            stream: give an iterator of pieces of text and of pictures, as they come; closing it ends the generation.
            settings: the fields of ``Settings``.

        Returns:
            A ``Reply``, whose ``message`` continues the conversation; or the iterator.

        Raises:
            TypeError, ValueError, FileNotFoundError: messages or settings that are not accepted, before any work.
        """
        wish = Chat(messages, Settings(**settings))
        if stream:
            return self._contents(wish)
        return self.run([wish])[0]

    def generate_image(
        self,
        prompt: str | int,
        *,
        size: tuple[int, int] | None = None,
        num_images: int = 1,
        negative_prompt: str | None = None,
        **settings: Any,
    ) -> list[PILImage]:
        """Images of a text.

        Args:
            prompt: what they show; of models of classes, the name or the number of one.
            size: (height, width) in pixels; None for the published one.
            num_images: how many; they have seeds of their own.
            negative_prompt: what they do not show, where the model knows that; None for the published one.
            settings: the fields of ``Settings``.

        Raises:
            TypeError, ValueError: as ``chat``; a size that the model does not write.
        """
        wish = GenerateImage(prompt, size, num_images, negative_prompt, Settings(**settings))
        return self.run([wish])[0].images

    def edit(
        self,
        pictures: Sequence[Picture],
        prompt: str,
        *,
        size: tuple[int, int] | None = None,
        num_images: int = 1,
        **settings: Any,
    ) -> list[PILImage]:
        """Images of images and a text.

        Args:
            pictures: what is edited, or referred to.
            prompt: what is to become of them.
            size: (height, width) in pixels; None for the method's choice.
            num_images: how many.
            settings: the fields of ``Settings``.

        Raises:
            TypeError, ValueError, FileNotFoundError: as ``chat``.
        """
        return self.run([Edit(pictures, prompt, size, num_images, Settings(**settings))])[0].images

    def generate_video(
        self, prompt: str, *, size: tuple[int, int] | None = None, num_frames: int | None = None, **settings: Any
    ) -> list[PILImage]:
        """The frames of a clip of a text.

        Args:
            prompt: what it shows.
            size: (height, width) in pixels; None for the published one.
            num_frames: how many; None for the published number.
            settings: the fields of ``Settings``.

        Raises:
            TypeError, ValueError: as ``chat``.
        """
        return self.run([GenerateVideo(prompt, size, num_frames, Settings(**settings))])[0].videos[0]

    def run(self, wishes: Sequence[Wish], *, max_batch: int | None = None, progress: bool = True) -> list[Reply]:
        """Requests of any kinds; those of the same settings share batches.

        Args:
            wishes: ``Chat``, ``GenerateImage``, ``Edit``, ``GenerateVideo``.
            max_batch: rows of a batch at most, a row for each image or answer; None for all at once.
            progress: whether to show a bar in a terminal, a step for each answer.

        Raises:
            TypeError, ValueError, FileNotFoundError: any request is not accepted; none has been worked on then.
        """
        from tqdm import tqdm  # huggingface-hub brings it

        rows = self._rows(wishes)
        contents: dict[tuple[int, int], list[Any]] = {(row.request, row.sample): [] for row in rows}
        with tqdm(total=len(rows), unit="sample", disable=None if progress else True, leave=False) as bar:
            for one in events(rows, self.components, self.front, max_batch=max_batch, stream=False, previews=False):
                contents[one.request, one.sample].append(one.content)
                bar.update(sum(map(bool, contents.values())) - bar.n)
        return [
            Reply(_joined(piece for (request, _), pieces in contents.items() if request == index for piece in pieces))
            for index in range(len(wishes))
        ]

    def stream(self, wishes: Sequence[Wish], *, max_batch: int | None = None, previews: bool = False) -> Iterator[Event]:
        """As ``run``, each piece of text and each picture as it comes; closing the iterator ends the work.

        Args:
            wishes: see ``run``.
            max_batch: see ``run``.
            previews: also give pictures as they look in each pass, where the model makes them pass by pass.

        Raises:
            TypeError, ValueError, FileNotFoundError: as ``run``, before the first piece.
        """
        yield from events(self._rows(wishes), self.components, self.front, max_batch=max_batch, stream=True, previews=previews)

    def training_samples(self, conversations: Sequence[Sequence[Message]]) -> list[Sample]:
        """Conversations as samples for ``model.batch_builder``, spelled as ``chat`` spells them; answers are learned.

        Args:
            conversations: messages each; the last one is the assistant's.

        Raises:
            TypeError, ValueError, FileNotFoundError: as ``chat``.
        """
        check_ability(self.front, "training_samples")
        front: Any = self.front
        return [front.training_sample(self.components, turns_of(messages)) for messages in conversations]

    def _contents(self, wish: Wish) -> Iterator[str | PILImage | list[PILImage]]:
        rows = self._rows([wish])
        return (one.content for one in events(rows, self.components, self.front, max_batch=None, stream=True, previews=False))

    def _rows(self, wishes: Sequence[Wish]) -> list[Row | Drawn]:
        """All rows, spelled: what is not accepted is refused before any work."""
        rows: list[Row | Drawn] = []
        for index, wish in enumerate(wishes):
            check_ability(self.front, wish.ability)
            spelled = wish.settings.applied(wish.request(self.front, self.components))
            for sample, seed in enumerate(seeds(wish.settings.seed, wish.num_samples)):
                if isinstance(spelled, Request):
                    rows.append(Row(index, sample, spelled, wish.settings.stops, seed))
                else:
                    rows.append(Drawn(index, sample, spelled, seed))
        return rows


def _joined(pieces: Iterator[Any]) -> tuple[Any, ...]:
    """Pieces of text that follow each other as one."""
    found: list[Any] = []
    for piece in pieces:
        if isinstance(piece, str) and found and isinstance(found[-1], str):
            found[-1] += piece
        else:
            found.append(piece)
    return tuple(found)
