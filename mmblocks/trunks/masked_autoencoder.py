"""A trunk of two: an encoder reads the tokens that are known, a decoder all of them.

Shapes: B rows, L tokens, D width of the encoder, D2 of the decoder.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.sequence.masks import Everything, Mask, MaskRule
from mmblocks.sequence.positions import sequential
from mmblocks.sequence.tokens import PADDING, TokenTable
from mmblocks.support.checks import check_range
from mmblocks.trunks.caches.kv_cache import KVCache
from mmblocks.trunks.decoder import Decoder


class Known(NamedTuple):
    """The tokens of rows that are known.

    Attributes:
        places: columns, those that are known first, in reading order; of shorter rows some that are not.
        table: of these tokens; what is not known is padding.
        even: whether all rows have as many.
    """

    places: Int[Tensor, "B K"]
    table: TokenTable
    even: bool

    @classmethod
    def of(cls, unknown: Bool[Tensor, "B L"], table: TokenTable) -> "Known":
        """The tokens that are not unknown."""
        if not len(unknown):
            return cls(torch.zeros_like(unknown, dtype=torch.long), table, even=True)
        fewest, most = (~unknown).sum(dim=1).aminmax()
        places = unknown.int().argsort(dim=1, stable=True)[:, : int(most)]
        even = bool(fewest == most)
        columns = (column.gather(1, places) if column.ndim == 2 else column.gather(1, spread(places, column)) for column in table)
        chosen = TokenTable(*columns)
        if not even:
            padding = unknown.gather(1, places)
            chosen = chosen._replace(
                document=torch.where(padding, PADDING, chosen.document), modality=torch.where(padding, PADDING, chosen.modality)
            )
        return cls(places, chosen, even)


class TwoCaches:
    """What encoder and decoder remember.

    Args:
        encoder, decoder: the cache of each, of which the first holds the tokens that were known when they were read.
    """

    def __init__(self, encoder: KVCache, decoder: KVCache) -> None:
        self.encoder, self.decoder = encoder, decoder
        self._read: list[tuple[int, int]] = []  # tokens of each pass, and how many of them the encoder read

    @property
    def batch(self) -> int:
        """Rows."""
        return self.decoder.batch

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return self.decoder.length

    @property
    def free(self) -> int | None:
        """Tokens that can still be read."""
        return self.decoder.free

    def note(self, tokens: int, known: int) -> None:
        """A pass of so many tokens, of which the encoder reads some."""
        self._read.append((tokens, known))

    def grow(self, count: int) -> None:
        """Takes room for so many tokens more."""
        self.encoder.grow(count)
        self.decoder.grow(count)

    def forget(self, count: int) -> None:
        """Takes back the newest tokens.

        Raises:
            ValueError: more tokens than were read, or some of those of a pass in which not all were known.
        """
        self.decoder.forget(count)
        while count:
            tokens, known = self._read.pop()
            if tokens > count and tokens != known:
                raise ValueError(f"count ends {count} tokens before the end of {tokens}, some unknown; accepted: whole passes")
            taken = min(tokens, count)
            self.encoder.forget(known if taken == tokens else taken)
            if taken < tokens:
                self._read.append((tokens - taken, known - taken))
            count -= taken


class MaskedAutoencoder(Block):
    """An encoder of the tokens that are known, and a decoder of all, to which one learned vector stands for the others.

    Where all tokens are known, as in text, it is the one after the other.

    Args:
        encoder, decoder: the layers of each.
        num_positions: tokens of the longest row, each of which has a learned vector in both.

    Source: MAE (arXiv 2111.06377), as in MAR (arXiv 2406.11838; LTH14/mar).

    Examples:
        >>> import torch
        >>> from mmblocks import Decoder, TokenTable
        >>> from mmblocks.sequence.masks import Everything
        >>> from mmblocks.trunks import MaskedAutoencoder
        >>> encoder, decoder = (Decoder(dim=dim, num_layers=1, num_heads=4, mlp_dim=48) for dim in (32, 16))
        >>> trunk = MaskedAutoencoder(encoder=encoder, decoder=decoder, num_positions=8)
        >>> embeds, table, unknown = torch.randn(1, 5, 32), TokenTable.text(1, 5), torch.tensor([[False, True, False, True, True]])
        >>> states = trunk(embeds, table, mask=Everything(), unknown=unknown)
        >>> changed = trunk(embeds.masked_fill(unknown[..., None], 9.0), table, mask=Everything(), unknown=unknown)
        >>> tuple(states.shape), torch.equal(states, changed)  # what is unknown is not read
        ((1, 5, 16), True)
    """

    encoder: Decoder
    decoder: Decoder

    def __init__(self, *, encoder: Decoder, decoder: Decoder, num_positions: int) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.norm = nn.LayerNorm(encoder.dim, eps=1e-6)
        self.connect = nn.Linear(encoder.dim, decoder.dim)
        self.encoder_positions = nn.Parameter(torch.empty(num_positions, encoder.dim).normal_(std=0.02))
        self.decoder_positions = nn.Parameter(torch.empty(num_positions, decoder.dim).normal_(std=0.02))
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder.dim).normal_(std=0.02))

    @property
    def dim(self) -> int:
        """D."""
        return self.encoder.dim

    def forward(
        self,
        embeds: Float[Tensor, "B L D"],
        table: TokenTable,
        cache: TwoCaches | None = None,
        *,
        mask: Mask | MaskRule | None = None,
        unknown: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L D2"]:
        """States of all tokens.

        Args:
            embeds: the tokens; what is unknown is not read.
            table: their metadata.
            cache: what was read before; the tokens are added to it.
            mask: as of ``Decoder``.
            unknown: True where a token is unknown; none is if None.

        Raises:
            ValueError: shapes that do not fit, or more tokens in a row than there are positions (checked on CPU).
        """
        positions = self._positions(table, cache)
        known = None if unknown is None else Known.of(unknown | table.is_padding, table)
        if cache is not None:
            cache.note(table.shape[1], table.shape[1] if known is None else known.table.shape[1])
        states = self.encode(embeds, table, known, positions, mask, None if cache is None else cache.encoder)
        return self.decode(states, table, known, positions, mask, None if cache is None else cache.decoder)

    def encode(
        self,
        embeds: Float[Tensor, "B L D"],
        table: TokenTable,
        known: Known | None,
        positions: Int[Tensor, "B L"],
        mask: Mask | MaskRule | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B K D"]:
        """The encoder's states of the tokens that are known."""
        x = self.norm(embeds + self.encoder_positions[positions])
        if known is None:
            return self.encoder(x, table, cache, mask=mask)
        if not known.table.shape[1]:
            return x[:, :0]
        if not callable(mask) and not (isinstance(mask, Everything) and known.even):
            mask = None  # forms found for all tokens say nothing of some
        return self.encoder(x.gather(1, spread(known.places, x)), known.table, cache, mask=mask)

    def decode(
        self,
        encoded: Float[Tensor, "B K D"],
        table: TokenTable,
        known: Known | None,
        positions: Int[Tensor, "B L"],
        mask: Mask | MaskRule | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B L D2"]:
        """States of all tokens, from those of the tokens that are known."""
        x = self.connect(encoded)
        if known is not None:
            hidden = self.mask_token.to(x.dtype)
            if not known.even:
                x = torch.where(known.table.is_padding[..., None], hidden, x)
            x = hidden.repeat(*table.shape, 1).scatter(1, spread(known.places, x), x)
        return self.decoder(x + self.decoder_positions[positions], table, cache, mask=mask)

    def new_cache(self, batch: int, capacity: int) -> TwoCaches:
        """An empty cache for ``batch`` rows of at most ``capacity`` tokens."""
        return TwoCaches(self.encoder.new_cache(batch, capacity), self.decoder.new_cache(batch, capacity))

    def _positions(self, table: TokenTable, cache: TwoCaches | None) -> Int[Tensor, "B L"]:
        """Where the tokens stand in their documents."""
        if cache is not None and cache.length:
            read = cache.decoder.table
            table = TokenTable(*(torch.cat(both, dim=1) for both in zip(read, table, strict=True)))
            positions = sequential(table)[:, cache.length :]
        else:
            positions = sequential(table)
        check_range("positions", positions, len(self.decoder_positions), ", the trunk's num_positions")
        return positions


def spread(places: Int[Tensor, "B K"], values: Tensor) -> Int[Tensor, "B K D"]:
    """Places for ``gather`` and ``scatter`` of whole vectors."""
    return places[..., None].expand(-1, -1, values.shape[-1])
