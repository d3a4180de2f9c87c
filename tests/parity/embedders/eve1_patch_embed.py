"""EVEv1's patch embedding layer, on ready canvases and from the image on."""

import torch
from PIL import Image

from mmblocks.embedders.eve1 import EVE1PatchEmbedding
from mmblocks.layers.images.pixels import normalise
from mmblocks.sequence.tokens import TokenKind
from tests.parity.cases import Case

MANIFESTS = {
    "eve_7b_v1": [(EVE1PatchEmbedding, "eve1")],
    "eve_7b_v1_train_pal": [(EVE1PatchEmbedding, "eve1")],
}


def run(case: Case) -> None:
    stem = load(case)
    canvases, masks = list(case.io["in.pixel_values"][:, :3]), list(case.io["in.pixel_values"][:, 3])
    tokens = stem.features(canvases, masks)
    for number in range(len(canvases)):
        mine = tokens.image == number
        case.check(f"out.pre_proj_{number}", tokens.embeds[mine])
        case.check(f"out.embeds_{number}", stem.projector(tokens.embeds[mine]))
        rows, columns = (tokens.grid[mine & (tokens.kind == TokenKind.PATCH)].amax(0) + 1).tolist()[1:]
        assert [rows, columns] == case.io["out.patch_hw"][number].tolist()
    case.leave_out("out.patch_hw")  # compared above

    for name, values in case.named("in.image_").items():
        check_preprocessing(stem, case, int(name), Image.fromarray(values.numpy()))


def check_preprocessing(stem: EVE1PatchEmbedding, case: Case, number: int, photo: Image.Image) -> None:
    """On the canvas as stored; and through the public way, with and without it, to the same tokens."""
    canvas, mask = stem.preprocess_canvas(photo)
    ready = torch.cat([normalise(canvas, case.config["image_mean"], case.config["image_std"]), mask[None]])
    torch.testing.assert_close(ready, case.io["in.pixel_values"][number], atol=2e-6, rtol=1e-5)
    case.check(f"out.embeds_{number}", stem([canvas], [mask]).embeds)
    pixels = stem.preprocess(photo)
    if not any(side % stem.token_size for side in pixels.shape[1:]):  # else the canvas alone says what is cut off
        case.check(f"out.embeds_{number}", stem([pixels]).embeds)


def load(case: Case) -> EVE1PatchEmbedding:
    names = {"input_size": "mm_hidden_size", "llm_hidden_size": "hidden_size", "mm_projector_type": "mm_projector_type"}
    return case.load(
        EVE1PatchEmbedding,
        {theirs: case.config[name] for name, theirs in names.items()},
        patch_size=case.config["patch_stride"],
        merge_size=case.config["conv_stride"],
        num_heads=case.config["num_heads"],
        image_size=case.config["image_size"],
        teacher_image_size=case.config["image_size_clip"],
        teacher_patch_size=case.config["patch_stride_clip"],
    )
