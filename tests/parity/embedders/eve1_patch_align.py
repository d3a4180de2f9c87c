"""EVEv1's patch aligning layer: the loss on a language model's states, and its gradients."""

import torch
from torch import Tensor

from mmblocks.embedders.eve1_alignment import EVE1PatchAlignment
from mmblocks.layers.images.image_tokens import grid_layout
from mmblocks.layers.images.resizing import valid_cells
from mmblocks.sequence.tokens import TokenKind, VisionTokens
from tests.parity.cases import Case

MANIFESTS = {"eve_7b_v1_train_pal": [(EVE1PatchAlignment, "eve1")]}


def run(case: Case) -> None:
    layer = load(case)
    assert list(layer.layers) == case.config["layer_idx"]
    features = clip_features(case)
    case.check("out.clip_features", features)

    rows, numbers = (case.io["in.input_ids"] == case.config["IMAGE_TOKEN_INDEX"]).nonzero(as_tuple=True)
    states = case.io["in.all_features"].requires_grad_()
    layouts = [grid_layout(*case.io["in.patch_hw"][row].tolist(), class_token=True, newline=True) for row in rows]
    spans = [
        states[row, start : start + len(layout.kind)][:, list(layer.layers)]
        for row, start, layout in zip(rows, numbers, layouts, strict=True)
    ]
    kind = torch.cat([layout.kind for layout in layouts])
    tokens = VisionTokens(
        embeds=torch.zeros(len(kind), 1),  # not read
        image=torch.cat([torch.full_like(layout.kind, number) for number, layout in enumerate(layouts)]),
        grid=torch.cat([layout.grid for layout in layouts]),
        kind=kind,
    )
    assert int((kind == TokenKind.CLASS).sum()) == len(rows)
    loss = layer(torch.cat(spans), tokens, [teacher_grid(case, features[row], int(row)) for row in rows])
    case.check("out.loss", loss[None])
    loss.backward()
    case.check_gradients(layer, "eve1-layer", all_features=states)


def teacher_grid(case: Case, features: Tensor, row: int) -> Tensor:
    """The teacher's features where the canvas shows the image."""
    cells = valid_cells(case.io["in.images_clip"][row, 3], case.config["patch_stride_clip"])
    side = case.config["image_size_clip"] // case.config["patch_stride_clip"]
    return features.unflatten(0, (side, side))[cells.rows, cells.columns]


def clip_features(case: Case) -> Tensor:
    """The teacher is transformers' own CLIP, as in the official code."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    settings = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size"}
    clip = case.config["clip"]
    config = CLIPVisionConfig(**{name: clip[name] for name in (*settings, "hidden_act", "layer_norm_eps")})
    model = CLIPVisionModel(config).eval()
    prefix = "clip_layer.backbone."
    weights = {name.removeprefix(prefix): value for name, value in case.weights.items() if name.startswith(prefix)}
    if not any(name.startswith("vision_model.") for name in model.state_dict()):
        weights = {name.removeprefix("vision_model."): value for name, value in weights.items()}
    model.load_state_dict(weights)
    states = model(case.io["in.images_clip"][:, :3], output_hidden_states=True).hidden_states
    return states[case.config["mm_vision_select_layer"]][:, 1:].detach()


def load(case: Case) -> EVE1PatchAlignment:
    return case.load(
        EVE1PatchAlignment,
        {},
        layout="eve1-layer",
        dim=case.config["llm_size"],
        teacher_dim=case.config["clip"]["hidden_size"],
        num_layers=case.config["num_layer"],
        layer_step=case.config["layer_rate"],
        num_heads=case.config["num_heads"],
    )
