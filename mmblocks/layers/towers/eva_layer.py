"""What the blocks of an EVA tower are like, in timm's words.

Imports of timm stand inside functions, since they take seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from torch import nn


class EvaLayerArguments(TypedDict, total=False):
    """The arguments of ``EvaLayer``, for the signatures of classes that pass them on."""

    norm: Literal["layer", "rms"]
    norm_eps: float
    post_norm: bool
    qkv_bias: bool
    swiglu: bool
    activation: str
    attention_norm: bool
    layer_scale: float | None
    drop_path: float


@dataclass(frozen=True, kw_only=True)
class EvaLayer:
    """The form of a tower's blocks, whatever their sizes. The defaults are those of EVA01-CLIP-g.

    Attributes:
        norm: "layer", or "rms" as in EVA-CLIP-8B and 18B.
        norm_eps: of all norms.
        post_norm: norms after attention and feed-forward, inside the residual, as in EVA02-CLIP-E and EVA-CLIP-18B.
        qkv_bias: biases of query and value; there is none of key.
        swiglu: a gated feed-forward with a norm inside, as in EVA-02's base and large towers; else a plain one.
        activation: of the plain feed-forward; see ``ACTIVATIONS``.
        attention_norm: a norm before attention's output projection, as in EVA02-CLIP's base and large towers.
        layer_scale: where learned scales of what attention and feed-forward add begin; None for none.
        drop_path: how often, while training, the last block leaves out either for an image; less for those before.

    Raises:
        ValueError: ``layer_scale`` with ``post_norm``, or an ``activation`` with ``swiglu``.
    """

    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-6
    post_norm: bool = False
    qkv_bias: bool = True
    swiglu: bool = False
    activation: str = "gelu"
    attention_norm: bool = False
    layer_scale: float | None = None
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if self.layer_scale is not None and self.post_norm:
            raise ValueError(f"layer_scale is {self.layer_scale} with post_norm; accepted: None")
        if self.swiglu and self.activation != "gelu":
            raise ValueError(f"activation is {self.activation!r} with swiglu, which has its own; accepted: 'gelu'")

    def norm_of(self, dim: int, **placed: Any) -> nn.Module:
        """A norm of the kind that a tower has throughout; ``placed`` may say where and in which dtype."""
        from timm.layers.norm import LayerNorm, RmsNorm

        kind: Callable[..., nn.Module] = {"layer": LayerNorm, "rms": RmsNorm}[self.norm]
        return kind(dim, eps=self.norm_eps, **placed)

    def tower(self, **sizes: Any) -> Any:
        """timm's ``Eva`` of such blocks, without norm and head; ``activation`` is left to the caller."""
        from timm.models.eva import Eva

        return Eva(
            **sizes,
            norm_layer=self.norm_of,
            use_post_norm=self.post_norm,
            qkv_bias=self.qkv_bias,
            swiglu_mlp=self.swiglu,
            scale_mlp=self.swiglu,
            scale_attn_inner=self.attention_norm,
            init_values=self.layer_scale,
            drop_path_rate=self.drop_path,
            # Apart, query, key and value need no buffer of zeros for the key's bias, and are called the same in all towers.
            qkv_fused=False,
            num_classes=0,
            global_pool="",
            use_fc_norm=False,
            use_post_transformer_norm=False,
        )
