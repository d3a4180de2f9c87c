"""Draws which token attends to which while an image is learned, a picture for each way of writing one, from the tables themselves.

python -m scripts.ways      # after a change of what a batch builder lays out; writes docs/images/ways
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import torch

from mmblocks import BatchBuilder, GridFormat, LMHead, codes, image, text, vectors
from mmblocks.heads import MaskedCodesHead, NextScaleHead, PlaceholderHead, RegressionHead, SpanDenoisingHead
from mmblocks.sequence import SpanLayout, Spans, visible
from mmblocks.sequence.batches import Batch
from mmblocks.sequence.segments import Segment
from mmblocks.sequence.tokens import Modality
from mmblocks.tokenizers.bottlenecks.multi_scale import MultiScaleQuantizer
from mmblocks.vocabulary import CodeIds

FOLDER = Path(__file__).parents[1] / "docs" / "images" / "ways"
CELL, GAP, LEFT, TOP = 20, 2, 28, 48
"""In pixels: a cell's side, what lies between two, and where the first one is."""

FORMAT = GridFormat(begin=7, closing=(8,), codes=CodeIds(sizes=(4,), first=10), fixed_size=(2, 2))
WORDS = {1: "a", 2: "b", 3: "c", 4: "d", 7: "[", 8: "]"}
"""Ids that are no codes, and how a picture shows them."""

KINDS = {
    "text": ("#3b6ea8", "text"),
    "true": ("#2e8b57", "the image as it is"),
    "noised": ("#c65d14", "the image, noised"),
    "hidden": ("#c65d14", "codes, some hidden"),
    "queries": ("#8e4a9e", "learned queries"),
    "scales": ("#0f8b8d", "coarser scales, enlarged"),
    "time": ("#8a7a1f", "the time"),
}
"""By kind of token, its colour and what it is called."""

STYLE = """text{font:12px system-ui,sans-serif;fill:#333;text-anchor:middle;dominant-baseline:central}
.on{fill:#fff}.start{text-anchor:start}.none{fill:#8883}
@media(prefers-color-scheme:dark){text{fill:#ddd}.on{fill:#fff}}"""


class Spanning:
    """As much of a head of whole spans as a batch builder looks at."""

    def __init__(self, span: SpanLayout) -> None:
        self.span = span


class Way(NamedTuple):
    """A way of writing an image.

    Attributes:
        title: of the picture.
        head: that writes the image.
        segments: the image's.
        reads: kind of the tokens that the image is learned at.
    """

    title: str
    head: object
    segments: Sequence[Segment]
    reads: str = "true"


class Token(NamedTuple):
    """A token of the row: what kind it is, which value it stands for, and which value its state predicts, if any."""

    kind: str
    name: str
    predicts: str = ""


def ways() -> dict[str, Way]:
    """Every way by the name of its picture."""
    latents = [vectors(torch.zeros(2, 2, 4), input="latents", target="image")]
    ids = [codes(torch.zeros(2, 2, dtype=torch.long), input="codes", target="image")]
    blocks = [vectors(torch.zeros(1, 2, 4), input="latents", target="image") for _ in range(2)]
    scales = [codes(torch.zeros(5, dtype=torch.long), input="codes", target="image")]
    quantizer = MultiScaleQuantizer(dim=4, num_codes=16, scales=(1, 2))
    pixels = [image(torch.zeros(3, 8, 8), input="pixels", target="image")]
    return {
        "one-after-the-other": Way("one value after the other", LMHead(dim=8, vocab_size=16), ids),
        "placeholders": Way(
            "placeholders", PlaceholderHead(head=RegressionHead(dim=8, target_dim=4), num_tokens=4, dim=8), latents, "queries"
        ),
        "denoising": Way("a noised copy and a clean one", _denoising(), latents, "noised"),
        "denoising-time-token": Way("a token for the time", _denoising(time="token"), latents, "noised"),
        "denoising-in-place": Way("read as it was noised", _denoising(context="read"), latents, "noised"),
        "denoising-blocks": Way("block after block", _denoising(), blocks, "noised"),
        "masked-codes": Way("masked codes", MaskedCodesHead(head=LMHead(dim=8, vocab_size=9), mask_id=9), ids, "hidden"),
        "masked-codes-beside": Way(
            "masked codes beside codes one by one",
            MaskedCodesHead(head=LMHead(dim=8, vocab_size=16), mask_id=9, first=10, num_codes=4, predicts="next", learner="text"),
            [codes(torch.zeros(2, 2, dtype=torch.long), FORMAT, target="image")],
            "hidden",
        ),
        "next-scale": Way("scale after scale", Spanning(NextScaleHead(dim=8, quantizer=quantizer).span), scales, "scales"),
        "generator": Way(
            "queries for a generator",
            Spanning(SpanLayout(writes="pixels", num_tokens=4, context="read", whole=True)),
            pixels,
            "queries",
        ),
    }


def _denoising(**options: str) -> SpanDenoisingHead:
    return SpanDenoisingHead(dim=8, channels=4, **options)  # type: ignore[arg-type]


def batch_of(way: Way) -> Batch:
    """Two words, the image, and two words that are learned after it, as they are laid out."""
    build = BatchBuilder(heads={"text": LMHead(dim=8, vocab_size=16), "image": way.head})
    return build([[text([1, 2]), *way.segments, text([3, 4], target="text")]])


def tokens_of(way: Way, batch: Batch) -> list[Token]:
    """The row's tokens."""
    vision = batch.table.modality[0] == Modality.VISION
    names, kinds = [""] * len(vision), ["text"] * len(vision)
    for place in (~vision & (batch.ids[0] >= 0)).nonzero()[:, 0].tolist():
        names[place] = WORDS[int(batch.ids[0, place])]
    for index, place in enumerate((vision & ~batch.table.noisy[0]).nonzero()[:, 0].tolist()):
        kinds[place], names[place] = "true", str(index + 1)  # where a head of whole spans writes it, it is named below
    predicted: list[list[str]] = [[] for _ in names]
    for spans, kind in ((batch.spans.get("image"), way.reads), (batch.copies.get("image"), "true")):
        if spans is None:
            continue
        for place in spans.leads.tolist():
            kinds[place], names[place] = "time", "t"
        for place, name in zip(spans.places.tolist(), _values(way, spans), strict=True):
            kinds[place], names[place] = kind, name
    for state, place in _supervised(batch):
        pixels = kinds[place] == "queries" and isinstance(way.head, Spanning)
        predicted[state].append("pixels" if pixels else names[place])
    return [Token(*token) for token in zip(kinds, names, map(", ".join, predicted), strict=True)]


def _supervised(batch: Batch) -> list[tuple[int, int]]:
    """(where a state stands, where the token stands whose value it predicts)."""
    found: list[tuple[int, int]] = []
    for spans in batch.spans.values():
        found += zip(spans.states[spans.written].tolist(), spans.places[spans.written].tolist(), strict=True)
    return found + [(place, place + 1) for placed in batch.targets.values() for place in placed.places.tolist()]


def _values(way: Way, spans: Spans) -> list[str]:
    """Which value of the image each token of its spans stands for, or which id is given; with scales, which of which scale."""
    scales = way.head.span.scales if isinstance(way.head, Spanning) else None
    if scales is None:
        written, ids = spans.written, spans.ids
        numbers = written.long().cumsum(0).tolist()
        given = [0] * len(numbers) if ids is None else ids[:, 0].tolist()
        return [str(number) if own else WORDS[id_] for number, own, id_ in zip(numbers, written.tolist(), given, strict=True)]
    return [f"{scale + 1}.{value + 1}" for scale, (rows, columns) in enumerate(scales) for value in range(rows * columns)]


def draw(way: Way) -> str:
    """The picture: a line for each query, a column for each key, and what each query's state predicts."""
    batch = batch_of(way)
    tokens, seen = tokens_of(way, batch), visible(batch.table)[0].tolist()
    step, count = CELL + GAP, len(tokens)
    right, below = LEFT + count * step, TOP + count * step
    kinds = list(dict.fromkeys(token.kind for token in tokens))
    width, height = max(right + 66, 300), below + 14 + 20 * len(kinds)
    columns = {kind: [k for k, token in enumerate(tokens) if token.kind == kind] for kind in kinds}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">',
        f"<title>{escape(way.title)}: which token attends to which</title>",
        f"<style>{STYLE}</style>",
        _cells([(q, k) for q in range(count) for k in range(count) if not seen[q][k]], 'class="none"'),
    ]
    lines += [
        _cells([(q, k) for q in range(count) for k in columns[kind] if seen[q][k]], f'fill="{KINDS[kind][0]}"') for kind in kinds
    ]
    lines += [f'<text class="start" x="{LEFT}" y="10">attends to</text>', f'<text x="{right + 33}" y="{TOP - 14}">predicts</text>']
    for place, token in enumerate(tokens):
        middle = place * step + CELL // 2
        lines += _label(token, LEFT + middle, TOP - 14) + _label(token, LEFT - 14, TOP + middle)
        if token.predicts:
            lines.append(f'<text x="{right + 33}" y="{TOP + middle}">{token.predicts}</text>')
    for index, kind in enumerate(kinds):
        y = below + 14 + 20 * index
        lines.append(f'<rect x="{LEFT}" y="{y}" width="12" height="12" rx="2" fill="{KINDS[kind][0]}"/>')
        lines.append(f'<text class="start" x="{LEFT + 18}" y="{y + 6}">{KINDS[kind][1]}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _cells(places: Sequence[tuple[int, int]], look: str) -> str:
    """Squares at (line, column)."""
    step = CELL + GAP
    path = "".join(f"M{LEFT + column * step} {TOP + line * step}h{CELL}v{CELL}h-{CELL}z" for line, column in places)
    return f'<path {look} d="{path}"/>'


def _label(token: Token, x: int, y: int) -> list[str]:
    """A token's name on its colour, about a place."""
    half = CELL // 2
    box = f'<rect x="{x - half}" y="{y - half}" width="{CELL}" height="{CELL}" rx="4" fill="{KINDS[token.kind][0]}"/>'
    return [box, f'<text class="on" x="{x}" y="{y}">{token.name}</text>']


def pictures() -> dict[Path, str]:
    """Each picture and its content."""
    return {FOLDER / f"{name}.svg": draw(way) for name, way in ways().items()}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, content in pictures().items():
        path.write_text(content, encoding="utf-8")
