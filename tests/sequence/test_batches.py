import pickle
from types import SimpleNamespace

import pytest
import torch

from mmblocks.sequence.batches import Batch, BatchBuilder
from mmblocks.sequence.masks import Causal, Intervals
from mmblocks.sequence.segments import NO_ID, codes, image, text, vectors
from mmblocks.sequence.spans import SpanLayout
from mmblocks.sequence.tokens import NO_HEAD, NO_SPAN, PADDING, ImageLayout, Modality
from mmblocks.vocabulary.code_ids import CodeIds
from mmblocks.vocabulary.grid_format import GridFormat
from mmblocks.vocabulary.text_tokenizers import ByteTokenizer

FORMAT = GridFormat(
    begin=300, image=301, row_end=302, last_row_end=True, closing=(303,), digits=tuple(range(48, 58)), times=42,
    codes=CodeIds(sizes=(16,), first=310),
)  # fmt: skip


class HalfSize:
    """An embedder's layout: one token per 2x2 pixels."""

    def layout(self, height: int, width: int) -> ImageLayout:
        row, column = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
        grid = torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3)
        return ImageLayout(grid, torch.zeros(len(grid), dtype=torch.long))


def builder() -> BatchBuilder:
    inputs = {"text": object(), "vision": HalfSize(), "latents": object()}
    return BatchBuilder(tokenizer=ByteTokenizer(), inputs=inputs, heads=("other", "lm"))


def test_columns_of_text_and_an_image() -> None:
    pixels = torch.rand(3, 4, 6)
    batch = builder()([[text("ab"), image(pixels, bidirectional=True), text("c", target="lm")]])
    table = batch.table
    assert batch.ids.tolist() == [[97, 98, *[NO_ID] * 6, 99]]
    assert table.modality.tolist() == [[0, 0, *[1] * 6, 0]]
    assert table.span.tolist() == [[NO_SPAN] * 2 + [0] * 6 + [NO_SPAN]]
    assert table.order.tolist() == [[0, 1, *[2] * 6, 3]]
    assert table.grid[0, 2:8].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]
    assert table.target.tolist() == [[NO_HEAD] * 7 + [1, NO_HEAD]]
    assert batch.inputs["text"].values.tolist() == [97, 98, 99]
    assert batch.inputs["text"].places.tolist() == [0, 1, 8]
    assert batch.inputs["vision"].values[0] is pixels
    assert batch.inputs["vision"].places.tolist() == list(range(2, 8))
    assert batch.targets["lm"].values.tolist() == [99]
    assert batch.targets["lm"].places.tolist() == [7]
    assert isinstance(batch.mask, Intervals)


def test_a_causal_image_takes_a_step_per_token() -> None:
    batch = builder()([[image(torch.rand(3, 2, 6)), text("c")]])
    assert batch.table.order.tolist() == [[0, 1, 2, 3]]
    assert isinstance(batch.mask, Causal)


def test_codes_are_vision_and_their_structure_is_text() -> None:
    grid = torch.tensor([[3, 4]])
    batch = builder()([[text("a"), codes(grid, FORMAT, target="lm")]])
    assert batch.ids.tolist() == [[97, 300, 49, 42, 50, 301, 313, 314, 302, 303]]
    is_code = torch.tensor([[False] * 6 + [True] * 2 + [False] * 2])
    assert torch.equal(batch.table.modality == Modality.VISION, is_code)
    assert torch.equal(batch.table.span == 0, is_code)
    assert batch.table.grid[0, 6:8].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert batch.targets["lm"].values.tolist() == [313, 314]
    assert batch.targets["lm"].places.tolist() == [5, 6]


def test_structure_is_learned_when_asked() -> None:
    batch = builder()([[text("a"), codes(torch.tensor([[3]]), FORMAT, target="lm", structure=True)]])
    assert batch.targets["lm"].values.tolist() == batch.ids[0, 1:].tolist()


def test_vectors_are_read_and_learned() -> None:
    values = torch.randn(2, 2, 5)
    batch = builder()([[text("a"), vectors(values, input="latents", target="other", bidirectional=True)]])
    assert torch.equal(batch.inputs["latents"].values, values.view(4, 5))
    assert torch.equal(batch.targets["other"].values, values.view(4, 5))
    assert batch.table.grid[0, 1:, 1:].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert batch.table.target.tolist() == [[0, 0, 0, 0, NO_HEAD]]


@pytest.mark.parametrize("padding", ["left", "right"])
def test_padding_side(padding) -> None:
    batch = builder()([[text("abc")], [text("d")]], padding=padding)
    short = [100, NO_ID, NO_ID] if padding == "right" else [NO_ID, NO_ID, 100]
    assert batch.ids.tolist() == [[97, 98, 99], short]
    assert batch.table.document[1].tolist() == [0 if i == 100 else PADDING for i in short]
    assert batch.inputs["text"].places.tolist() == [0, 1, 2, 3 + short.index(100)]


def test_packing_fills_rows_with_whole_samples_in_order() -> None:
    samples = [[text("abc", target="lm")], [text("de", target="lm")], [text("fghi")], [text("j")]]
    batch = builder()(samples, pack=5)
    assert batch.table.document.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]
    assert batch.table.order.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]
    # Nobody is asked for the first token of a document, least of all the document before.
    assert batch.targets["lm"].values.tolist() == [98, 99, 101]
    assert batch.targets["lm"].places.tolist() == [0, 1, 3]


def test_images_of_two_rows_keep_their_order() -> None:
    first, second, third = torch.rand(3, 2, 2), torch.rand(3, 4, 2), torch.rand(3, 2, 4)
    batch = builder()([[image(first), text("a")], [text("b"), image(second), image(third)]])
    assert [v.shape for v in batch.inputs["vision"].values] == [first.shape, second.shape, third.shape]
    assert batch.inputs["vision"].places.tolist() == [0, 6, 7, 8, 9]
    assert batch.table.span[1].tolist() == [NO_SPAN, 0, 0, 1, 1]


def test_empty_text_beside_other_segments_is_no_token() -> None:
    assert builder()([[text(""), text("a")]]).ids.tolist() == [[97]]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "samples is empty"),
        ([[]], "sample 0 holds no token"),
        ([[text("a")], [text("")]], "sample 1 holds no token"),
        ([[text("a", target="lmm")]], "target 'lmm'.*'other', 'lm'"),
        ([[text("a", input="words")]], "input 'words'"),
        ([[image(torch.rand(3, 2, 2), input="text")]], r"input 'text'.*\['vision'\]"),
    ],
)
def test_samples_that_do_not_fit_are_refused(samples, message) -> None:
    with pytest.raises(ValueError, match=message):
        builder()(samples)


def test_a_sample_longer_than_the_pack_is_refused() -> None:
    with pytest.raises(ValueError, match="sample 1 has 4 tokens"):
        builder()([[text("a")], [text("abcd")]], pack=3)


def test_a_string_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="no tokenizer"):
        BatchBuilder()([[text("a")]])


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("pixels", "error", "message"),
    [
        (torch.zeros(3, 4, 4, dtype=torch.int64), ValueError, "int64"),
        (torch.rand(4, 4, 3), ValueError, r"\(4, 4, 3\)"),
        (torch.rand(3, 0, 4), ValueError, r"\(3, 0, 4\)"),
        (torch.full((3, 2, 2), 1.5), ValueError, r"\[1.5, 1.5\]"),
        (torch.full((3, 2, 2), float("nan")), ValueError, "nan"),
    ],
)
def test_pixels_that_are_none_are_refused(pixels, error, message) -> None:
    with pytest.raises(error, match=message):
        image(pixels)


def test_a_batch_goes_from_worker_to_model() -> None:
    """With spans and without: what a batch does not have can be pickled too."""
    head = SimpleNamespace(span=SpanLayout(lead=1))
    build = BatchBuilder(heads={"lm": object(), "image": head})
    picture = vectors(torch.ones(2, 2, 4), input="latents", target="image")
    for sample in ([text([1]), text([2], target="lm")], [text([1]), picture, text([2], target="lm")]):
        batch = build([sample])
        came = pickle.loads(pickle.dumps(batch))
        assert torch.equal(came.ids, batch.ids)
        assert {name: spans.places.tolist() for name, spans in came.spans.items()} == {
            name: spans.places.tolist() for name, spans in batch.spans.items()
        }
        assert pickle.loads(pickle.dumps(Batch(*batch[:5]))).weights == {}
