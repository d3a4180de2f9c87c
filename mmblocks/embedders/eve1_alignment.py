"""EVEv1's patch aligning layer: a training loss that lets a language model's image tokens resemble an encoder's features.

Shapes: N tokens of all images, P patch tokens among them, K states of each, D width of the trunk, h and w patches and C width of
the teacher.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from mmblocks.block import Block
from mmblocks.checkpoints.layouts.layout import Layout, Rule
from mmblocks.checkpoints.layouts.published_config import check_arguments, check_model, stated
from mmblocks.checkpoints.layouts.rules import Arguments
from mmblocks.embedders.eve_presets import EVE1_HARMLESS
from mmblocks.sequence.tokens import TokenKind, VisionTokens


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """EVEv1's config, which has the layer without saying how it is built: those are the defaults."""
    check_model(config, "eve", "eve_llama")
    if not config["requires_cliploss"]:
        raise ValueError("requires_cliploss is false; accepted: a checkpoint that was trained with the patch aligning layer")
    return {"dim": config["hidden_size"], "num_layers": config["num_hidden_layers"]}


def _published_config(arguments: Arguments) -> dict[str, Any]:
    check_arguments(arguments, teacher_dim=1024, layer_step=4, num_heads=8)
    return {
        "model_type": "eve",
        "architectures": ["EVELlamaForCausalLM"],
        "hidden_size": arguments["dim"],
        "num_hidden_layers": arguments["num_layers"],
        "requires_cliploss": True,
    }


_LAYER = {"llm_size": "dim", "num_layer": "num_layers", "layer_rate": "layer_step", "num_heads": "num_heads"}
"""Arguments of the published class -> ours."""


def _layer_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the published class, and those of its teacher. A file of the layer alone has none beside it."""
    teacher = stated(config, "clip", {})
    widths = {"teacher_dim": teacher["hidden_size"]} if "hidden_size" in teacher else {}
    return widths | {ours: config[theirs] for theirs, ours in _LAYER.items() if theirs in config}


def _published_layer(arguments: Arguments) -> dict[str, Any]:
    return {"clip": {"hidden_size": arguments["teacher_dim"]}, **{theirs: arguments[ours] for theirs, ours in _LAYER.items()}}


_HARMLESS = (
    *EVE1_HARMLESS,
    *("mm_vision_tower", "mm_vision_tower_clip", "mm_hidden_size", "mm_projector_type"),
    *("patch_stride", "conv_stride", "image_size", "image_size_clip", "patch_stride_clip"),
)
"""Of the language model, of the embedding and of the teacher."""


def _rules(prefix: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{prefix}norm_layer.{{}}.0.*", "branches.{}.norm.*"),
        Rule(f"{prefix}norm_layer.{{}}.1.*", "branches.{}.project.*"),
        Rule(f"{prefix}input_layer.*", "last.*"),
        Rule(f"{prefix}output_layer.*", "out.*"),
    )


class EVE1PatchAlignment(Block):
    """One minus the cosine between a teacher's features and what is read off several layers of the trunk, patch by patch.

    At each patch the projected state of the last layer attends to those of earlier layers. The teacher stands outside: its
    features are handed in, and its weights are never part of this Block. Published training adds the loss to that of the language
    model with weight 1.

    Args:
        dim: D.
        teacher_dim: C.
        num_layers: layers of the trunk.
        layer_step: every how many layers a state is read, from the last back to the embeddings; see ``layers``.
        num_heads: heads of the attention. Scores are scaled by the whole width, not a head's.

    Attributes:
        layers: which states are read, as ``trunks.hidden_states`` counts them, the last first; 0 is the embeddings. Published
            training takes the last one after the final norm.

    Raises:
        ValueError: heads that do not divide the teacher's width, or a step that leaves the last layer alone.

    Source: EVEv1 (arXiv 2406.11832; baaivision/EVE), whose teacher is the last but one layer of CLIP ViT-L/14-336.

    Examples:
        >>> import torch
        >>> from mmblocks.embedders import EVE1PatchAlignment, EVE1PatchEmbedding
        >>> embedder = EVE1PatchEmbedding(dim=8, hidden_dim=16)
        >>> align = EVE1PatchAlignment(dim=8, teacher_dim=16, num_layers=4, layer_step=2)
        >>> align.layers  # whose states it reads
        (4, 2, 0)
        >>> tokens = embedder([torch.rand(3, 56, 84)])
        >>> states = torch.randn(len(tokens.embeds), len(align.layers), 8)
        >>> 0 < align(states, tokens, teacher=[torch.randn(2, 3, 16)]).item() < 2
        True
    """

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "eve1",
            _rules("model.vision_tower_compressor."),
            ignored=(
                "model.vision_tower_compressor.clip_layer.*",
                "model.vision_clip.*",
                "model.vision_tower.*",
                "model.mm_projector.*",
                "model.layers.*",
                "model.embed_tokens.weight",
                "model.norm.weight",
                "lm_head.weight",
            ),
            config=_config,
            published_config=_published_config,
            harmless=_HARMLESS,
        ),
        Layout(
            "eve1-layer",
            _rules(""),
            ignored=("clip_layer.*",),
            config=_layer_config,
            published_config=_published_layer,
            harmless=("clip.*",),
        ),
    )

    def __init__(self, *, dim: int, teacher_dim: int = 1024, num_layers: int = 32, layer_step: int = 4, num_heads: int = 8) -> None:
        super().__init__()
        if teacher_dim % num_heads:
            raise ValueError(f"teacher_dim is {teacher_dim}, num_heads {num_heads}; accepted: heads that divide the width")
        if not 1 <= layer_step <= num_layers:
            raise ValueError(f"layer_step is {layer_step}; accepted: 1 to num_layers, {num_layers}")
        self.layers = tuple(range(num_layers, -1, -layer_step))
        self.num_heads = num_heads
        self.scale = teacher_dim**-0.5
        self.branches = nn.ModuleList(_Branch(dim, teacher_dim) for _ in self.layers)
        self.last = nn.Linear(dim, teacher_dim)
        self.out = nn.Linear(teacher_dim, teacher_dim)

    def forward(
        self, states: Float[Tensor, "N K D"], tokens: VisionTokens, teacher: Sequence[Float[Tensor, "_ _ C"]]
    ) -> Float[Tensor, ""]:
        """The loss, in float32: the mean over images of each image's mean over patches. Zero where there is no image.

        Args:
            states: the trunk's states of the image tokens, in the order of ``layers``: the last layer's first.
            tokens: what those tokens are, as the embedder told; their vectors are not read. Class and newline tokens are left out.
            teacher: features (h, w, C) of each image. Where a side has more tokens than the teacher has patches, a whole number
                of times and the same for both sides, tokens are averaged. No gradient goes to the teacher.

        Raises:
            ValueError: other numbers of states, tokens or images than agree, or grids that do not fit together.
        """
        if states.shape[:2] != (len(tokens.kind), len(self.layers)):
            raise ValueError(
                f"states are {tuple(states.shape)}; accepted: ({len(tokens.kind)}, {len(self.layers)}, D), a state of each of"
                f" the layers {self.layers} for each token"
            )
        is_patch = tokens.kind == int(TokenKind.PATCH)
        grids = _grids(tokens, is_patch)
        if len(grids) != len(teacher):
            raise ValueError(
                f"teacher has the features of {len(teacher)} images; accepted: those of {len(grids)}, as many as tokens"
            )
        if not teacher:
            return sum((parameter.sum() * 0.0 for parameter in self.parameters()), states.sum() * 0.0).float()
        packed = states[is_patch].split([rows * columns for rows, columns in grids])
        pooled = [_pooled(own, *grid, features) for own, grid, features in zip(packed, grids, teacher, strict=True)]
        wanted = torch.cat([features.flatten(0, 1) for features in teacher]).detach()
        alike = cosine_similarity(self.student(torch.cat(pooled)).float(), wanted.float(), dim=-1)
        return torch.stack([1 - cosines.mean() for cosines in alike.split([len(own) for own in pooled])]).mean()

    def student(self, states: Float[Tensor, "P K D"]) -> Float[Tensor, "P C"]:
        """What is compared with the teacher's features, from patches' states."""
        projected = torch.stack([branch(states[:, index]) for index, branch in enumerate(self.branches)], dim=1)
        heads = rearrange(projected, "p k (heads d) -> p k heads d", heads=self.num_heads)
        query, context = heads[:, 0], heads[:, 1:]
        scores = torch.einsum("p h d, p k h d -> p h k", query * self.scale, context)
        found = torch.einsum("p h k, p k h d -> p h d", scores.softmax(dim=-1), context)
        return self.last(states[:, 0]) + self.out(found.flatten(1))


class _Branch(nn.Module):
    def __init__(self, dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, teacher_dim, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        return self.project(self.norm(states))


def _grids(tokens: VisionTokens, is_patch: Tensor) -> list[tuple[int, int]]:
    """Rows and columns of patch tokens of each image."""
    image, row, column = torch.cat([tokens.image[:, None], tokens.grid[:, 1:]], dim=1)[is_patch].cpu().unbind(1)
    last = torch.nonzero(torch.diff(image, append=image.new_tensor([-1]))).flatten()  # of each image, for they are packed
    return list(zip((row[last] + 1).tolist(), (column[last] + 1).tolist(), strict=True))


def _pooled(states: Tensor, rows: int, columns: int, teacher: Tensor) -> Tensor:
    """The states of an image's tokens, averaged down to the teacher's grid."""
    height, width = teacher.shape[:2]
    times = max(rows // max(height, 1), 1)
    if (rows, columns) != (height * times, width * times):
        raise ValueError(f"an image has {rows}x{columns} tokens, its teacher {height}x{width} patches; accepted: whole multiples")
    return reduce(states, "(h p w q) k d -> (h w) k d", "mean", h=height, w=width, p=times, q=times)
