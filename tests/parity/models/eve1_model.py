"""EVEv1 as a whole: states of all layers, logits, loss, and the loss together with the patch aligning layer's."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmblocks import LMHead
from mmblocks.embedders import EVE1PatchAlignment
from mmblocks.layers.images.pixels import CLIP_MEAN, CLIP_STD, denormalise
from mmblocks.layers.images.resizing import valid_cells
from mmblocks.models import EVE1
from mmblocks.trunks import hidden_states
from tests.parity.cases import Case
from tests.parity.embedders import eve1_patch_align
from tests.parity.models.eve2_model import samples_of

_PARTS = [(EVE1, "eve1"), (LMHead, "llama")]
MANIFESTS = {"eve_7b_v1": _PARTS, "eve_7b_v1_train_pal": _PARTS}


def run(case: Case) -> None:
    model, alignment = load(case)
    shown = [row for row, canvas in enumerate(case.io["in.images"]) if canvas[3].any()]
    images = [cut_out(case, canvas) for canvas in case.io["in.images"]]
    batch = model.batch_builder()(samples_of(case, images))
    # Upstream keeps padding ids, and so may end with columns that are padding in every row.
    spare = case.io["out.logits"].shape[1] - batch.ids.shape[1]
    real = pad(~batch.table.is_padding, (0, spare))

    teacher = teacher_features(case, shown)
    output = model.aligned(batch, alignment, teacher)
    case.check("out.logits", pad(model.outputs["text"].logits(output.hidden), (0, 0, 0, spare)), where=real)
    for name, got in (("lm", output.losses["text"]), ("align", output.losses["alignment"]), ("total", sum(output.losses.values()))):
        case.check(f"out.loss_{name}", got[None])
    torch.testing.assert_close(model(batch).losses["text"], output.losses["text"])

    layers = range(model.config["num_layers"] + 1)
    states = torch.stack(hidden_states(model.trunk, model.embed(batch), batch.table, layers), dim=2)
    case.check("out.hidden_states", pad(states, (0, 0, 0, 0, 0, spare)), where=real)
    sum(output.losses.values()).backward()
    check_gradients(case, model, alignment)


def load(case: Case) -> tuple[EVE1, EVE1PatchAlignment]:
    notes = ("clip", "layer_rate", "num_layer")  # of the teacher, and of what the official code makes of the number of layers
    config = {name: value for name, value in case.config.items() if name not in notes}
    model = case.load(EVE1, config, teacher_patch_size=case.config["clip"]["patch_size"])
    alignment = case.load(
        EVE1PatchAlignment,
        config,
        layout="eve1",
        teacher_dim=case.config["clip"]["hidden_size"],
        layer_step=case.config["layer_rate"],
    )
    return model, alignment


def teacher_features(case: Case, rows: list[int]) -> list[Tensor]:
    """As the cases of the aligning layer alone have them, where the teacher's settings have other names."""
    case.weights = {name.removeprefix("model.vision_tower_compressor."): value for name, value in case.weights.items()}
    case.config.setdefault("mm_vision_select_layer", -2)
    case.config.setdefault("patch_stride_clip", case.config["clip"]["patch_size"])
    features = eve1_patch_align.clip_features(case)
    return [eve1_patch_align.teacher_grid(case, features[row], row) for row in rows]


def cut_out(case: Case, canvas: Tensor) -> Tensor:
    """What a canvas shows, in whole windows; of one that shows nothing the embedder needs nothing."""
    step, merge = case.config["patch_stride"], case.config["conv_stride"]
    cells = valid_cells(canvas[3], step)
    if cells is None:
        return canvas[:3]
    rows, columns = (
        slice(side.start * step, (side.start + (side.stop - side.start) // merge * merge) * step)
        for side in (cells.rows, cells.columns)
    )
    return denormalise(canvas[:3, rows, columns], CLIP_MEAN, CLIP_STD).clamp(0, 1)


def check_gradients(case: Case, model: EVE1, alignment: EVE1PatchAlignment) -> None:
    """Of parameters of the model or of the aligning layer, under their published names."""
    theirs = {
        name: gradient
        for block, layout in ((model, EVE1.layouts[0]), (alignment, EVE1PatchAlignment.layouts[0]))
        for name, gradient in layout.convert(
            {name: p.grad for name, p in block.named_parameters() if p.grad is not None}, block.config, to="theirs"
        )
    }
    for name in case.named("grad."):
        case.check(f"grad.{name}", theirs[name])
