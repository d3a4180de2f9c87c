"""EVEv1's patch embedding and aligning layers: ragged batches, canvases, the loss, and what is refused."""

import pytest
import torch
from PIL import Image

from mmblocks import Block
from mmblocks.embedders.eve1 import EVE1PatchEmbedding
from mmblocks.embedders.eve1_alignment import EVE1PatchAlignment
from mmblocks.layers.images.resizing import valid_cells
from mmblocks.sequence.tokens import TokenKind, VisionTokens

SIZES = [(4, 4), (8, 4), (4, 12), (20, 8), (8, 4)]


def stem(**options) -> EVE1PatchEmbedding:
    torch.manual_seed(0)
    sizes = {"image_size": 32, "teacher_image_size": 16, "teacher_patch_size": 4}
    return EVE1PatchEmbedding(dim=12, hidden_dim=16, patch_size=2, merge_size=2, num_heads=4, **(sizes | options))


def alignment() -> EVE1PatchAlignment:
    torch.manual_seed(0)
    return EVE1PatchAlignment(dim=12, teacher_dim=16, num_layers=6, layer_step=2, num_heads=4)


def test_a_ragged_batch_equals_single_images() -> None:
    part, images = stem(), [torch.rand(3, *size) for size in SIZES]
    tokens = part(images)
    for number, pixels in enumerate(images):
        torch.testing.assert_close(tokens.embeds[tokens.image == number], part([pixels]).embeds)


@pytest.mark.parametrize("size", SIZES)
def test_the_layout_is_known_from_the_size(size) -> None:
    tokens, layout = stem()([torch.rand(3, *size)]), stem().layout(*size)
    rows, columns = size[0] // 4, size[1] // 4
    assert torch.equal(tokens.grid, layout.grid) and torch.equal(tokens.kind, layout.kind)
    assert layout.kind[0] == TokenKind.CLASS and layout.grid[0].tolist() == [0, 0, 0]
    body = layout.kind[1:].view(rows, columns + 1)
    assert (body[:, :-1] == TokenKind.PATCH).all() and (body[:, -1] == TokenKind.NEWLINE).all()


def test_each_row_is_closed_by_the_split_token_and_only_windows_see_their_pixels() -> None:
    part, pixels = stem(), torch.rand(3, 8, 12)
    before = part.features([pixels])
    assert torch.equal(before.embeds[before.kind == TokenKind.NEWLINE], part.split_token.expand(2, -1))
    changed = pixels.clone()
    changed[:, 4:, 8:] = 0
    differs = (part([changed]).embeds != part([pixels]).embeds).any(dim=1)
    assert differs.nonzero().flatten().tolist() == [0, 7]  # the class token, which reads all, and the last patch token


@pytest.mark.parametrize("size", [(7, 9), (40, 1), (3, 64), (8, 8)])
def test_a_canvas_gives_what_its_image_gives(size) -> None:
    part, photo = stem(), Image.effect_noise(size, 80).convert("RGB")
    canvas, mask = part.preprocess_canvas(photo)
    assert canvas.shape == (3, 32, 32)
    for marks in (mask, mask.bool()):
        torch.testing.assert_close(part([canvas], [marks]).embeds, part([part.preprocess(photo)]).embeds)


def test_patches_that_fill_no_window_are_cut_off_a_canvas() -> None:
    part, canvas, mask = stem(), torch.rand(3, 16, 16), torch.zeros(16, 16)
    mask[2:12, 4:10] = 1  # 5 x 3 patches
    torch.testing.assert_close(part([canvas], [mask]).embeds, part([canvas[:, 2:10, 4:8]]).embeds)


def test_of_an_empty_canvas_a_corner_is_read() -> None:
    part, canvas = stem(), torch.rand(3, 40, 36)
    torch.testing.assert_close(part([canvas], [torch.zeros(40, 36)]).embeds, part([canvas[:, :32, :32]]).embeds)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
@pytest.mark.parametrize("size", [(7, 9), (200, 1), (1, 1)])
def test_any_image_becomes_whole_tokens(mode, size) -> None:
    pixels = stem().preprocess(Image.new(mode, size))
    assert max(pixels.shape[1:]) == 32 and pixels.min() >= 0 and pixels.max() <= 1
    stem()([pixels])


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="image is 0x5; accepted: sides of at least one pixel"):
        stem().preprocess(Image.new("RGB", (5, 0)))


def test_gradients_reach_every_parameter() -> None:
    part = stem()
    part([torch.rand(3, 8, 12), torch.rand(3, 4, 4)]).embeds.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in part.parameters())


def test_bf16_and_saving(tmp_path) -> None:
    part, images = stem(projector_layers=3), [torch.rand(3, 8, 4), torch.rand(3, 4, 4)]
    part.save_pretrained(tmp_path)
    wanted = part(images).embeds
    torch.testing.assert_close(Block.from_pretrained(tmp_path)(images).embeds, wanted)
    made = part.bfloat16()(images).embeds
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.float(), wanted, atol=0.05, rtol=0.05)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("pixels", "error", "message"),
    [
        (torch.zeros(3, 4, 4, dtype=torch.uint8), TypeError, "uint8"),
        (torch.zeros(4, 4, 3), ValueError, r"\(4, 4, 3\)"),
        (torch.full((3, 4, 4), float("nan")), ValueError, "nan"),
        (torch.zeros(3, 5, 8), ValueError, "image is 5x8; accepted: multiples of 4, such as 4x8"),
    ],
)
def test_what_is_no_image_is_refused(pixels, error, message) -> None:
    with pytest.raises(error, match=message):
        stem()([pixels])


def test_masks_have_to_fit_their_images() -> None:
    with pytest.raises(ValueError, match="there are 0 masks; accepted: one for each of 1"):
        stem()([torch.rand(3, 4, 4)], [])
    with pytest.raises(ValueError, match=r"a mask is \(8, 4\); accepted: that of its image, \(4, 4\)"):
        stem()([torch.rand(3, 4, 4)], [torch.ones(8, 4)])


@pytest.mark.parametrize(("options", "message"), [({"num_heads": 3}, "num_heads 3"), ({"image_size": 40}, "image_size is 40")])
def test_sizes_that_do_not_divide_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        EVE1PatchEmbedding(**({"dim": 12, "hidden_dim": 16, "image_size": 32, "teacher_image_size": 16} | options))


def test_the_config_names_the_projector() -> None:
    (layout,) = EVE1PatchEmbedding.layouts
    with pytest.raises(ValueError, match="mm_projector_type is 'linear'"):
        layout.arguments({"mm_projector_type": "linear", "hidden_size": 4, "mm_hidden_size": 4})


# --- the patch aligning layer


def example(sizes) -> tuple[torch.Tensor, VisionTokens]:
    tokens = stem()([torch.rand(3, *size) for size in sizes])
    return torch.randn(len(tokens.kind), 4, 12, requires_grad=True), tokens


def test_the_loss_is_zero_where_the_teacher_says_the_same_and_is_a_mean_over_images() -> None:
    layer, (states, tokens) = alignment(), example([(8, 12), (4, 4)])
    same = layer.student(states[tokens.kind == TokenKind.PATCH])
    teacher = [same[:6].unflatten(0, (2, 3)), same[6:].unflatten(0, (1, 1))]
    torch.testing.assert_close(layer(states, tokens, teacher), torch.tensor(0.0))
    torch.testing.assert_close(layer(states, tokens, [-teacher[0], teacher[1]]), torch.tensor(1.0))
    assert layer.layers == (6, 4, 2, 0)


def test_denser_tokens_are_averaged_to_the_teachers_grid() -> None:
    layer, (states, tokens) = alignment(), example([(8, 16)])
    patches = states[tokens.kind == TokenKind.PATCH].view(2, 4, 4, 12)
    pooled = patches.view(1, 2, 2, 2, 4, 12).mean(dim=(1, 3)).flatten(0, 1)
    torch.testing.assert_close(layer(states, tokens, [layer.student(pooled).view(1, 2, 16)]), torch.tensor(0.0))


def test_gradients_reach_every_parameter_and_the_states_and_not_the_teacher() -> None:
    layer, (states, tokens) = alignment(), example([(8, 12), (4, 4)])
    teacher = [torch.randn(2, 3, 16, requires_grad=True), torch.randn(1, 1, 16, requires_grad=True)]
    layer(states, tokens, teacher).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in layer.parameters())
    is_patch = tokens.kind == TokenKind.PATCH
    assert states.grad[is_patch].any() and not states.grad[~is_patch].any()
    assert teacher[0].grad is None


def test_without_images_the_loss_is_zero_and_keeps_the_graph() -> None:
    layer, empty = alignment(), torch.zeros(0, dtype=torch.long)
    tokens = VisionTokens(embeds=torch.zeros(0, 12), image=empty, grid=empty.view(0, 1).expand(0, 3), kind=empty)
    loss = layer(torch.zeros(0, 4, 12), tokens, [])
    loss.backward()
    assert loss == 0 and all(parameter.grad is not None for parameter in layer.parameters())


def test_the_teacher_stays_out_and_the_layer_is_saved(tmp_path) -> None:
    layer, (states, tokens) = alignment(), example([(8, 12)])
    layer.save_pretrained(tmp_path)
    teacher = [torch.randn(2, 3, 16)]
    torch.testing.assert_close(Block.from_pretrained(tmp_path)(states, tokens, teacher), layer(states, tokens, teacher))
    assert set(layer.state_dict()) == {name for name, _ in layer.named_parameters()}
    assert torch.isfinite(layer.bfloat16()(states.bfloat16(), tokens, teacher))


def test_grids_that_do_not_fit_are_refused() -> None:
    layer, (states, tokens) = alignment(), example([(8, 12)])
    with pytest.raises(ValueError, match="an image has 2x3 tokens, its teacher 3x2 patches"):
        layer(states, tokens, [torch.zeros(3, 2, 16)])
    with pytest.raises(ValueError, match="features of 2 images; accepted: those of 1"):
        layer(states, tokens, [torch.zeros(2, 3, 16)] * 2)
    with pytest.raises(ValueError, match=r"accepted: \(9, 4, D\), a state of each of the layers \(6, 4, 2, 0\)"):
        layer(states[:, :3], tokens, [torch.zeros(2, 3, 16)])


@pytest.mark.parametrize(("options", "message"), [({"num_heads": 5}, "num_heads 5"), ({"layer_step": 0}, "layer_step is 0")])
def test_alignment_sizes_that_do_not_fit_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        EVE1PatchAlignment(**({"dim": 12, "teacher_dim": 16, "num_layers": 4} | options))


def test_checkpoints_without_the_layer_are_refused() -> None:
    with pytest.raises(ValueError, match="requires_cliploss is false"):
        EVE1PatchAlignment.layouts[0].arguments({"requires_cliploss": False, "hidden_size": 4, "num_hidden_layers": 4})


def test_a_teachers_cells_are_those_of_the_mask() -> None:
    _, mask = stem().preprocess_canvas(Image.new("RGB", (40, 10)))
    assert valid_cells(mask[::2, ::2], 4) == (slice(1, 2), slice(0, 4))
