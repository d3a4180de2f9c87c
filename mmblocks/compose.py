"""A model made of parts: embedders, one trunk, heads.

Shapes: B rows, L tokens, N tokens of one input or target, D width of the trunk.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self, cast

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from mmblocks.block import Block
from mmblocks.compose_around import language_model_parts
from mmblocks.generation.autoregressive import generate_ids
from mmblocks.generation.grammar import Grammar
from mmblocks.generation.guidance import as_guidance
from mmblocks.generation.interleaved import Generated, segments_of
from mmblocks.generation.options import Generation, takes_old_keywords
from mmblocks.generation.trunk_states import TrunkStates, Watch, check_layers, document_states
from mmblocks.layers.parts import Parts, check_input, check_output
from mmblocks.layers.spans import Read, conditions_of, embed_spans, finished, renamed, told, weighted
from mmblocks.roles import AnyEmbedder, AnyHead, Cache, Head, SpanHead, Trunk, check_role, embed_at
from mmblocks.sequence.batches import Batch, BatchBuilder, Sample
from mmblocks.sequence.masks import MaskRule
from mmblocks.sequence.rows import Placed
from mmblocks.sequence.spans import Conditions, Reading
from mmblocks.sequence.tokens import TokenTable
from mmblocks.trunks.transformers.hooks import PreTrained
from mmblocks.vocabulary.text_tokenizers import TextTokenizer


class ModelOutput(NamedTuple):
    """What a ``MultimodalModel`` makes of a batch.

    Attributes:
        losses: by head name, the mean loss over its tokens, unweighted; heads without labels are left out.
        token_losses: by head name, one loss per supervised token, in the order of ``batch.targets[name].places``.
        hidden: the trunk's states of all tokens.
    """

    losses: dict[str, Float[Tensor, ""]]
    token_losses: dict[str, Float[Tensor, " N"]]
    hidden: Float[Tensor, "B L D"]


class MultimodalModel(Block):
    """Embedders write tokens into rows, a trunk lets them attend to each other, heads predict what comes next.

    The parts stay what and where they are: ``model.trunk`` is the trunk that was handed in, and its parameters have the
    names ``trunk.<their own name>``. Any object that plays its role will do; only saving needs a ``Block``.

    Args:
        inputs: embedders by name. One that reads ids gets a tensor (N,), one that reads vectors (N, D'), one that
            reads images a list of (3, H, W); each returns ``VisionTokens`` or a tensor (N, D).
        trunk: embeddings and table to hidden states.
        outputs: heads by name.
        mask: a rule of one's own for which tokens attend to which, in place of the table's; see ``sequence.masks.MaskRule``.

    Raises:
        TypeError: a part that cannot play its role; the message says what it lacks.
        ValueError: if there are no inputs.

    Examples:
        >>> from mmblocks import ByteTokenizer, Decoder, LMHead, MultimodalModel, TextEmbedding, text
        >>> tokenizer = ByteTokenizer()
        >>> model = MultimodalModel(
        ...     inputs={"text": TextEmbedding(vocab_size=tokenizer.vocab_size, dim=32)},
        ...     trunk=Decoder(dim=32, num_layers=1, num_heads=4, mlp_dim=64),
        ...     outputs={"text": LMHead(dim=32, vocab_size=tokenizer.vocab_size)},
        ... )
        >>> batch = model.batch_builder(tokenizer)([[text("one and one? "), text("two", target="text")]])
        >>> model(batch).losses["text"].backward()
    """

    trunk: Trunk

    def __init__(
        self,
        *,
        inputs: Mapping[str, AnyEmbedder],
        trunk: Trunk,
        outputs: Mapping[str, AnyHead],
        mask: MaskRule | None = None,
    ) -> None:
        super().__init__()
        if not inputs:
            raise ValueError("inputs is empty; accepted: at least one embedder by name")
        self.inputs = Parts(inputs, check_input)
        check_role(trunk, Trunk, "trunk")
        self.trunk = trunk
        self.outputs = Parts(outputs, check_output)
        for name, head in outputs.items():
            if isinstance(head, SpanHead):
                check_layers(name, head.span, trunk)
        self.mask = mask

    @classmethod
    def around(cls, model: PreTrained, *, trunk: str | None = None) -> Self:
        """A causal language model of transformers as a composed model: it reads "text" and writes "text".

            model = MultimodalModel.around(AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B"))
            model.inputs["vision"] = EncoderEmbedder(...)

        The weights are shared with the model, and a head that is tied to the embedding stays so. Logits of a few ids are compared.

        Args:
            model: the language model, on one device.
            trunk: ``"decoder"``, where a ``Decoder`` follows the model's family; ``"transformers"`` for its own layers in a
                ``TransformersTrunk``; None for the first where it can be had, and the second otherwise.

        Raises:
            TypeError: a model without an embedding of ids, or without a head that is one linear map.
            ValueError: an encoder and a decoder, a model of more than text, or one whose logits are not those of its parts.
        """
        parts = language_model_parts(model, trunk)
        return cls(inputs={"text": parts.embedding}, trunk=parts.trunk, outputs={"text": parts.head}).train(model.training)

    def forward(
        self,
        batch: Batch,
        *,
        given: Mapping[str, Mapping[str, Any]] | None = None,
        generator: Generator | None = None,
    ) -> ModelOutput:
        """The losses of all heads for which the batch has labels.

        Args:
            batch: as ``batch_builder`` lays it out.
            given: by name of a head of whole spans, what its ``corrupt`` takes in place of random values, such as times and noise.
            generator: source of what is not given.

        Raises:
            ValueError: an input or a head that the model lacks, or values for a head that has no spans in the batch.
        """
        reads = self._reads(batch, given or {}, generator)
        found = self._states(batch, reads)
        hidden = found.output
        rows = hidden.flatten(0, 1)
        token_losses: dict[str, Tensor] = {}
        for name, placed in batch.targets.items():
            if len(placed.places):
                head, values = self._head(name), cast(Tensor, placed.values)  # labels are no images
                weight = batch.weights.get(name)
                one = head.loss(rows[placed.places], values) if weight is None else head.loss(rows[placed.places], values, weight)
                _join(token_losses, name, one)
        for name, pooled in batch.pooled.items():
            count = torch.bincount(pooled.of, minlength=len(pooled.values))[:, None]
            states = rows.new_zeros(len(pooled.values), rows.shape[1]).index_add(0, pooled.of, rows[pooled.places]) / count
            _join(token_losses, name, self._head(name).loss(states, pooled.values))
        for name, read in reads.items():
            _join(token_losses, name, weighted(self._span_losses(name, read, batch.table, found), read.spans))
        losses = {name: values.mean() for name, values in token_losses.items()}
        return ModelOutput(losses, token_losses, hidden)

    def hidden(
        self, batch: Batch, *, readings: Mapping[str, Reading] | None = None, generator: Generator | None = None
    ) -> Float[Tensor, "B L D"]:
        """The trunk's states of all tokens.

        Args:
            batch: as ``batch_builder`` lays it out.
            readings: by name of a head of whole spans, what is read at the spans that it learns; each head's ``corrupt`` says so if
                None.
            generator: source of randomness there.
        """
        if readings is None:
            return self._states(batch, self._reads(batch, {}, generator)).output
        return self._states(batch, {name: Read(spans, readings[name]) for name, spans in batch.spans.items()}).output

    def embed(self, batch: Batch, *, generator: Generator | None = None) -> Float[Tensor, "B L D"]:
        """What the trunk reads: every input's tokens in their places, zeros at padding.

        Raises:
            ValueError: an input the model lacks, or one that makes more or fewer tokens than have places.
        """
        return self._embeds(batch, {**renamed(self._copies(batch)), **self._reads(batch, {}, generator)})

    def conditions(self, batch: Batch) -> Conditions | None:
        """What layers are told of the tokens of a batch that is read as it is, as a prompt."""
        return conditions_of(list(self._copies(batch).values()), *batch.ids.shape)

    def _reads(self, batch: Batch, given: Mapping[str, Mapping[str, Any]], generator: Generator | None) -> dict[str, Read]:
        """What heads of whole spans let the trunk read at the spans that they learn."""
        if not {*given} <= {*batch.spans}:
            raise ValueError(f"given is for heads {list(given)}; accepted: heads of whole spans in the batch, {list(batch.spans)}")
        return {
            name: Read(spans, self._span_head(name).corrupt(spans, generator=generator, **given.get(name, {})))
            for name, spans in batch.spans.items()
        }

    def _states(self, batch: Batch, reads: Mapping[str, Read]) -> TrunkStates:
        everything = {**renamed(self._copies(batch)), **reads}
        mask = batch.mask if self.mask is None else self.mask
        beside: dict[str, Any] = {**batch.beside, **told(list(everything.values()), *batch.ids.shape)}
        watch = Watch(self.trunk, (layer for name in reads for layer in self._span_head(name).span.layers))
        embeds = self._embeds(batch, everything)
        return watch.states(self.trunk(embeds, batch.table, mask=mask, **beside, **watch.options))

    def _span_losses(self, name: str, read: Read, table: TokenTable, states: TrunkStates) -> Float[Tensor, " N"]:
        """By token or by span, of the states that the head's layout says."""
        head, spans = self._span_head(name), read.spans
        places = spans.states
        if head.span.states == "document":
            places, counts = document_states(table, spans, head.span.lead)
            spans = spans._replace(contexts=(counts,))
        return head.loss(states.of(head.span.layers).flatten(0, 1).index_select(0, places), spans, read.reading)

    def _copies(self, batch: Batch) -> dict[str, Read]:
        """What is read of spans that stand in the batch as they are."""
        return {name: Read(spans, finished(self._span_head(name), spans)) for name, spans in batch.copies.items()}

    def _embeds(self, batch: Batch, reads: Mapping[str, Read]) -> Float[Tensor, "B L D"]:
        rows, columns = batch.ids.shape
        grid = batch.table.grid.flatten(0, 1)
        embedded = [(placed.places, self._embed_one(name, placed, grid)) for name, placed in batch.inputs.items()]
        for read in reads.values():
            embeds, leads = embed_spans(self.inputs, read)
            embedded.append((read.spans.places, embeds[0]))
            embedded += [] if leads is None else [(read.spans.leads, leads[0])]
        first = embedded[0][1]
        embeds = first.new_zeros(rows * columns, first.shape[-1])
        for places, values in embedded:
            embeds = embeds.index_copy(0, places, values.to(embeds.dtype))
        return embeds.view(rows, columns, -1)

    def batch_builder(self, tokenizer: TextTokenizer | None = None) -> BatchBuilder:
        """Lays samples out for this model's inputs and heads."""
        return BatchBuilder(tokenizer=tokenizer, inputs=self.inputs, heads=self.outputs)

    @takes_old_keywords
    def generate(
        self,
        prompts: Sequence[Sample],
        grammar: Grammar | Sequence[Grammar],
        options: Generation | None = None,
        *,
        unconditional: Sequence[Sample] | None = None,
        tokenizer: TextTokenizer | None = None,
        cache: Cache | None = None,
        stream: bool = False,
    ) -> Iterator[Generated]:
        """Continues each prompt; yields text and images as they are completed, row by row as they come.

        Args:
            prompts: samples to be continued, of any lengths.
            grammar: what may follow (``TextGrammar``, ``GridGrammar``, ...), for all rows or one each; an image's codes come as a
                ``Codes`` segment.
            options: length, sampling, guidance, hooks and randomness; ``Generation()`` if None. An image that is not complete
                after ``options.max_tokens`` is left out.
            unconditional: for guidance, each prompt without its condition; with three streams all prompts of the second, then of
                the third.
            tokenizer: for strings, in and out; without one text is ids.
            cache: an empty cache of one's own; see ``generate_ids``.
            stream: yield text piece by piece as it is written.

        Raises:
            ValueError: guidance without as many unconditional prompts as it needs, or the other way round; and as ``generate_ids``.
        """
        options = options or Generation()
        more = len(prompts) * (as_guidance(options.guidance).num_streams - 1)
        if len(unconditional or ()) != more:
            raise ValueError(
                f"guidance and unconditional go together: {len(unconditional or ())} unconditional prompts given, {more} accepted"
            )
        samples = [*prompts, *(unconditional or ())]
        batch = self.batch_builder(tokenizer)(samples, padding="left", learn=False).to(self._device)
        steps = generate_ids(self, batch, grammar, options, cache=cache)
        yield from segments_of(steps, grammar, tokenizer=tokenizer, input=options.input, stream=stream)

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _embed_one(self, name: str, placed: Placed, grid: Int[Tensor, "BL 3"]) -> Tensor:
        if name not in self.inputs:
            raise ValueError(f"the batch has tokens for input {name!r}; the model's inputs: {list(self.inputs)}")
        values = embed_at(self.inputs[name], placed.values, grid[placed.places])
        if values.shape[0] != len(placed.places):
            raise ValueError(
                f"input {name!r} made {values.shape[0]} tokens for {len(placed.places)} places: "
                "the images are not those the batch was laid out for"
            )
        return values

    def _head(self, name: str) -> Head:
        if name not in self.outputs:
            raise ValueError(f"the batch has labels for head {name!r}; the model's heads: {list(self.outputs)}")
        return cast(Head, self.outputs[name])

    def _span_head(self, name: str) -> SpanHead:
        if name not in self.outputs:
            raise ValueError(f"the batch has spans for head {name!r}; the model's heads: {list(self.outputs)}")
        return cast(SpanHead, self.outputs[name])


def _join(losses: dict[str, Tensor], name: str, more: Tensor) -> None:
    losses[name] = torch.cat([losses[name], more]) if name in losses else more
