"""How spans that heads write as wholes are laid out; labels, weights and what else a segment says."""

import pickle
from typing import Any

import pytest
import torch

from mmblocks import BatchBuilder, codes, image, label, text, vectors
from mmblocks.layers.images.image_tokens import grid_layout
from mmblocks.sequence import Modality, SpanLayout, visible
from mmblocks.sequence.masks import as_text
from mmblocks.sequence.positions import by_order, sequential
from mmblocks.sequence.spans import from_patches, to_patches
from mmblocks.sequence.tokens import ImageLayout
from mmblocks.vocabulary import raster_format


class Head:
    """A head as a builder needs it."""

    def __init__(self, **options: Any) -> None:
        self.span = SpanLayout(**options)


def builder(**options: Any) -> BatchBuilder:
    return BatchBuilder(heads={"lm": object(), "image": Head(**options)})


LATENTS = torch.arange(8.0).view(1, 2, 4)


def sample(**options: Any) -> list[Any]:
    return [text([5]), vectors(LATENTS, input="latents", target="image", **options), text([6, 7], target="lm")]


def test_a_span_is_noised_then_clean_and_the_text_reads_the_clean_copy() -> None:
    batch = builder()([sample()])
    assert (
        as_text(visible(batch.table))
        == """\
x . . . . . .
x x x . . . .
x x x . . . .
x . . x x . .
x . . x x . .
x . . x x x .
x . . x x x x"""
    )
    assert batch.table.noisy[0].tolist() == [False, True, True, False, False, False, False]
    assert sequential(batch.table)[0].tolist() == [0, 1, 2, 1, 2, 3, 4]
    assert by_order(batch.table)[0].tolist() == [0, 1, 1, 1, 1, 2, 3]
    spans, copies = batch.spans["image"], batch.copies["image"]
    assert (spans.places.tolist(), copies.places.tolist()) == ([1, 2], [3, 4])
    torch.testing.assert_close(spans.rows(), LATENTS[0])
    torch.testing.assert_close(copies.rows(), LATENTS[0])
    assert batch.targets["lm"].places.tolist() == [4, 5]
    assert "latents" not in batch.inputs  # both are read through the head


def test_nothing_is_copied_that_nothing_follows() -> None:
    batch = builder()([sample()[:2], [*sample()[:2], label(1, target="lm")]])
    assert batch.table.shape == (2, 3)
    assert not batch.copies


def test_a_prompt_holds_the_clean_copy_alone() -> None:
    batch = builder()([sample()], learn=False)
    assert not batch.spans
    assert not batch.targets
    assert not batch.table.noisy.any()
    assert batch.copies["image"].places.tolist() == [1, 2]


def test_a_token_of_the_heads_own_comes_first_and_attends_to_what_is_before() -> None:
    batch = builder(lead=1)([sample()])
    assert (
        as_text(visible(batch.table))
        == """\
x . . . . . . . .
x x . . . . . . .
x x x x . . . . .
x x x x . . . . .
x . . . x . . . .
x . . . x x x . .
x . . . x x x . .
x . . . x x x x .
x . . . x x x x x"""
    )
    assert sequential(batch.table)[0].tolist() == [0, 1, 2, 3, 1, 2, 3, 4, 5]
    assert (batch.spans["image"].leads.tolist(), batch.copies["image"].leads.tolist()) == ([1], [4])


def test_what_is_read_may_stay_in_the_row() -> None:
    batch = builder(context="read", num_tokens=3, attends="causal")([sample()])
    assert as_text(visible(batch.table)) == as_text(torch.ones(6, 6).tril().bool()[None])
    assert batch.spans["image"].counts == (3,)
    with pytest.raises(ValueError, match="accepted in a prompt: spans without target"):
        builder(context="read", num_tokens=3)([sample()], learn=False)


def test_a_token_may_take_a_patch_of_values() -> None:
    latents = torch.arange(48.0).view(4, 6, 2)
    batch = builder(patch=2, lead=1)([[text([5]), vectors(latents, input="latents", target="image"), text([6])]])
    spans = batch.spans["image"]
    assert (spans.counts, spans.sizes, spans.patch) == ((6,), ((4, 6),), 2)
    assert spans.grid.tolist() == [[0, row, column] for row in range(2) for column in range(3)]
    assert spans.rows()[1].tolist() == latents[:2, 2:4].flatten().tolist()  # rows, columns, channels
    assert torch.equal(spans.maps(spans.rows())[0], latents) and torch.equal(batch.copies["image"].rows(), spans.rows())
    clip = torch.randn(3, 2, 4, 5)
    assert torch.equal(from_patches(to_patches(clip, 2), (3, 2, 4), 2), clip)
    for wrong in (torch.zeros(3, 4, 2), torch.zeros(4, 2)):
        with pytest.raises(ValueError, match="accepted: rows and columns that are multiples of 2"):
            builder(patch=2)([[vectors(wrong, input="latents", target="image")]])
    with pytest.raises(ValueError, match="have an order; accepted: none, since it takes them in patches"):
        builder(patch=2)([[vectors(torch.zeros(2, 2, 4), input="latents", target="image", order=torch.tensor([1, 0, 2, 3]))]])
    for own in ({"whole": True}, {"num_tokens": 4}, {"writes": "ids"}):
        with pytest.raises(ValueError, match="patch is 2; accepted: 1"):
            SpanLayout(patch=2, **own)


class Patches:
    """An embedder of images, as a builder needs it."""

    def layout(self, height: int, width: int) -> ImageLayout:
        return grid_layout(height // 2, width // 2)


def test_vectors_may_be_read_as_images_are() -> None:
    build = BatchBuilder(inputs={"text": object(), "vision": Patches()}, heads={"lm": object(), "image": Head()})
    latents = torch.randn(4, 6, 2)
    batch = build([[text([5]), vectors(latents, input="vision", bidirectional=True), text([6])]])
    (read,) = batch.inputs["vision"].values
    assert torch.equal(read, latents.movedim(-1, 0))
    assert batch.table.order[0].tolist() == [0, *[1] * 6, 2]
    assert batch.table.grid[0, 6].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"reads images, and was given vectors of shape \(4, 2\), no order"):
        build([[vectors(torch.zeros(4, 2), input="vision")]])
    with pytest.raises(ValueError, match=r"vectors as target of 'lm' for input 'vision', which reads images; accepted: a head of"):
        build([[text([5]), vectors(latents, input="vision", target="lm")]])


def test_scales_attend_to_those_before() -> None:
    layout = {"writes": "ids", "context": "read", "scales": ((1, 1), (1, 2))}
    batch = builder(**layout)([[text([5]), codes(torch.tensor([3, 4, 5]), input="scales", target="image"), text([6])]])
    assert batch.table.order[0].tolist() == [0, 1, 2, 2, 3]
    assert batch.table.grid[0, 1:4].tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]
    with pytest.raises(ValueError, match="a span of 2 values for head 'image'; accepted: 3"):
        builder(**layout)([[codes(torch.tensor([3, 4]), input="scales", target="image")]])


def test_states_before_predict_the_next_token() -> None:
    batch = builder(predicts="next", attends="causal")([[text([5]), *sample()[1:]]])
    assert batch.spans["image"].states.tolist() == [0, 1]
    with pytest.raises(ValueError, match="begins a sample, where no state comes before it"):
        builder(predicts="next", attends="causal")([sample()[1:]])


def test_whole_values_and_pixels_come_as_the_sample_has_them() -> None:
    pixels = torch.rand(3, 5, 4)
    batch = builder(writes="pixels", num_tokens=2, context="read", whole=True)([[text([5]), image(pixels, target="image")]])
    (found,) = batch.spans["image"].values
    assert torch.equal(found, pixels)
    assert batch.spans["image"].sizes == ((5, 4),)
    with pytest.raises(ValueError, match="has an image as target of 'lm'; accepted: a head of whole spans"):
        builder()([[image(pixels, target="lm")]])


def test_codes_in_a_format_keep_what_stands_around_them() -> None:
    form = raster_format(1, 2, 16)
    batch = builder(writes="ids")([[text([20]), codes(torch.tensor([[3, 4]]), form, target="image"), text([21])]])
    assert batch.ids.tolist() == [[20, -1, -1, -1, -1, 21]]
    assert batch.spans["image"].rows().tolist() == [3, 4]


def test_a_segment_says_modality_weight_order_and_what_is_given() -> None:
    told = {"modality": Modality.DEPTH, "weight": 0.5, "given": {"label": 3}, "order": torch.tensor([1, 0])}
    batch = builder()([sample(**told), sample(given={"label": 4})])
    spans = batch.spans["image"]
    assert batch.table.modality[0].tolist() == [0, 4, 4, 4, 4, 0, 0]
    assert spans.weight is not None
    assert (spans.weight.tolist(), spans.given["label"].tolist()) == ([0.5, 1.0], [3, 4])
    torch.testing.assert_close(spans.rows()[:2], LATENTS[0].flip(0))
    assert spans.grid[:2].tolist() == [[0, 0, 1], [0, 0, 0]]
    plain = BatchBuilder(heads=("lm",))([[text([1, 2], target="lm", weight=0.25), text([3], target="lm")]])
    assert plain.weights["lm"].tolist() == [0.25, 1.0]
    with pytest.raises(ValueError, match="accepted: the same for all of a batch"):
        builder()([sample(given={"label": 3}), sample()])


def test_codes_that_are_read_may_see_each_other() -> None:
    batch = BatchBuilder()([[text([5]), codes(torch.tensor([[3, 4]]), bidirectional=True), text([6])]])
    assert batch.table.order[0].tolist() == [0, 1, 1, 2]


def test_labels_of_a_state_or_of_a_mean_take_no_token() -> None:
    build = BatchBuilder(heads=("lm", "match"))
    first = [text([1, 2, 3]), label(1, target="match"), text([4], target="lm")]
    second = [text([5, 6]), label(torch.tensor([0.5, 2.0]), target="lm", of="mean")]
    batch = build([first, second], pack=8)
    assert batch.table.document.tolist() == [[0, 0, 0, 0, 1, 1]]
    assert (batch.targets["match"].values.tolist(), batch.targets["match"].places.tolist()) == ([1], [2])
    pooled = batch.pooled["lm"]
    assert (pooled.values.tolist(), pooled.places.tolist(), pooled.of.tolist()) == ([[0.5, 2.0]], [4, 5], [0, 0])
    with pytest.raises(ValueError, match="has a label before any token"):
        build([[label(1, target="match"), text([1])]])


def test_a_builder_with_such_heads_goes_to_other_processes() -> None:
    again = pickle.loads(pickle.dumps(builder(lead=1)))
    assert torch.equal(again([sample()]).table.order, builder(lead=1)([sample()]).table.order)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"writes": "sound"}, "writes is 'sound'; accepted: 'ids', 'vectors', 'pixels'"),
        ({"lead": -1}, "lead is -1"),
        ({"scales": ()}, "accepted: at least one scale"),
        ({"context": "noised"}, "accepted: 'clean', 'read'"),
    ],
)
def test_layouts_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpanLayout(**options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vectors(LATENTS, input="x", order=torch.tensor([0, 0])), "accepted: each of 0 to 1 once"),
        (lambda: vectors(LATENTS, input="x", weight=-1), "weight is -1"),
        (lambda: codes(torch.zeros(1, 1, 1, 1, dtype=torch.long)), "accepted without a format"),
        (lambda: codes(torch.zeros(1, 2, dtype=torch.long), raster_format(1, 2, 4), bidirectional=True), "accepted: either"),
        (lambda: text([1], weight=float("nan")), "weight is nan"),
        (lambda: image(torch.rand(3, 2, 2), modality=-1), "modality is -1"),
        (lambda: label(1, target="x", of="first"), "accepted: 'last', 'mean'"),
    ],
)
def test_segments_that_cannot_be_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
