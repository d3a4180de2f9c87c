"""BAGEL in plain torch, block after block on a cache, as its published code orders the operations; and a tiny published folder.

Weights have the published names. Rows are one at a time and nothing is shared with the library.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, rms_norm, silu

DIM, HEADS, KV, LAYERS, MLP, VOCAB, THETA = 32, 4, 2, 2, 40, 64, 1e6
VIT_DIM, VIT_HEADS, VIT_LAYERS, VIT_MLP, PATCH, VIT_SIDE = 24, 2, 2, 36, 14, 4
CHANNELS, LATENT_SIDE = 4, 8
BEGIN, END = 60, 61

LLM_CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": DIM,
    "intermediate_size": MLP,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV,
    "rms_norm_eps": 1e-6,
    "rope_theta": THETA,
    "sliding_window": 131072,
    "tie_word_embeddings": True,  # as Qwen2.5's smaller ones: the authors' code writes over it
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "vocab_size": VOCAB,
}
VIT_CONFIG = {
    "model_type": "siglip_vision_model",
    "hidden_size": VIT_DIM,
    "image_size": VIT_SIDE * PATCH,
    "intermediate_size": VIT_MLP,
    "num_attention_heads": VIT_HEADS,
    "num_hidden_layers": VIT_LAYERS + 1,
    "patch_size": PATCH,
}
OWN = {"markers": (BEGIN, END), "latent_channels": CHANNELS, "latent_side": LATENT_SIDE}
"""What a tiny folder cannot say."""


def published_weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random ones under the names of ema.safetensors."""
    draws = torch.Generator().manual_seed(0)
    head, latent = DIM // HEADS, 4 * CHANNELS
    shapes: dict[str, tuple[int, ...]] = {
        "language_model.model.embed_tokens.weight": (VOCAB, DIM),
        "language_model.lm_head.weight": (VOCAB, DIM),
    }

    def biased(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    for twin in ("", "_moe_gen"):
        shapes[f"language_model.model.norm{twin}.weight"] = (DIM,)
        for layer in range(LAYERS):
            at = f"language_model.model.layers.{layer}."
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"{at}{norm}{twin}.weight"] = (DIM,)
            for name, heads in (("q", HEADS), ("k", KV), ("v", KV)):
                biased(f"{at}self_attn.{name}_proj{twin}", heads * head, DIM)
            shapes[f"{at}self_attn.o_proj{twin}.weight"] = (DIM, DIM)
            for name in ("q", "k"):
                shapes[f"{at}self_attn.{name}_norm{twin}.weight"] = (head,)
            for name, size in (("gate", (MLP, DIM)), ("up", (MLP, DIM)), ("down", (DIM, MLP))):
                shapes[f"{at}mlp{twin}.{name}_proj.weight"] = size
    vit = "vit_model.vision_model."
    biased(f"{vit}embeddings.patch_embedding", VIT_DIM, 3 * PATCH**2)
    shapes[f"{vit}embeddings.position_embedding.weight"] = (VIT_SIDE**2, VIT_DIM)
    norms = [f"{vit}post_layernorm"]
    for layer in range(VIT_LAYERS):
        at = f"{vit}encoder.layers.{layer}."
        norms += [f"{at}layer_norm1", f"{at}layer_norm2"]
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            biased(f"{at}self_attn.{name}", VIT_DIM, VIT_DIM)
        biased(f"{at}mlp.fc1", VIT_MLP, VIT_DIM)
        biased(f"{at}mlp.fc2", VIT_DIM, VIT_MLP)
    for norm in norms:
        shapes[f"{norm}.weight"], shapes[f"{norm}.bias"] = (VIT_DIM,), (VIT_DIM,)
    biased("connector.fc1", DIM, VIT_DIM)
    biased("connector.fc2", DIM, DIM)
    biased("vae2llm", DIM, latent)
    biased("llm2vae", latent, DIM)
    biased("time_embedder.mlp.0", DIM, 256)
    biased("time_embedder.mlp.2", DIM, DIM)
    found = {name: torch.randn(shape, generator=draws) * 0.25 for name, shape in shapes.items()}
    found = {name: value + 1 if "norm" in name and name.endswith("weight") else value for name, value in found.items()}
    found["vit_pos_embed.pos_embed"], found["latent_pos_embed.pos_embed"] = sincos(VIT_SIDE), sincos(LATENT_SIDE)
    return {name: value.to(dtype).contiguous() for name, value in found.items()}


def sincos(side: int) -> Tensor:
    """Half of the channels for the column, half for the row: sines, then cosines."""
    omega = 1.0 / 10000 ** (torch.arange(DIM // 4, dtype=torch.float64) / (DIM / 4))
    line = torch.arange(side, dtype=torch.float64)[:, None] * omega
    line = torch.cat([line.sin(), line.cos()], dim=1)
    return torch.stack([torch.cat([line[c], line[r]]) for r in range(side) for c in range(side)]).float()


def published_folder(path: Path, dtype: torch.dtype = torch.float32) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    save_file(published_weights(dtype), path / "ema.safetensors")
    save_file({"encoder.conv_in.bias": torch.zeros(2)}, path / "ae.safetensors")
    (path / "llm_config.json").write_text(json.dumps(LLM_CONFIG))
    (path / "vit_config.json").write_text(json.dumps(VIT_CONFIG))
    return path


@dataclass
class Context:
    """What was read: keys and values by layer, and the next rotary position."""

    rope: int = 0
    past: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def copy(self) -> "Context":
        return Context(self.rope, list(self.past))


class Reference:
    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.w = weights

    def lin(self, name: str, x: Tensor) -> Tensor:
        return linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def text(self, context: Context, ids: list[int]) -> Tensor:
        """Causal text; the logits of each token."""
        x = self.w["language_model.model.embed_tokens.weight"][ids]
        positions = torch.arange(context.rope, context.rope + len(ids))
        hidden = self.block(context, x, positions, [], causal=True, keep=True)
        context.rope += len(ids)
        return self.lin("language_model.lm_head", hidden)

    def vit(self, context: Context, pixels: Tensor) -> Tensor:
        """An image through SigLIP, between markers; the hidden states."""
        x = self.framed(self.vision(pixels))
        hidden = self.block(context, x, torch.full((len(x),), context.rope), [], causal=False, keep=True)
        context.rope += 1
        return hidden

    def vae(self, context: Context, latents: Tensor) -> Tensor:
        """Clean latents (h, w, C), between markers; the hidden states."""
        hidden = self.latents(context, patched(latents), 0.0, latents.shape[1] // 2, keep=True)
        context.rope += 1
        return hidden

    def velocity(self, context: Context, x: Tensor, t: float, columns: int) -> Tensor:
        return self.lin("llm2vae", self.latents(context, x, t, columns, keep=False)[1:-1])

    def latents(self, context: Context, x: Tensor, t: float, columns: int, *, keep: bool) -> Tensor:
        half = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128) * t
        time = self.lin("time_embedder.mlp.2", silu(self.lin("time_embedder.mlp.0", torch.cat([half.cos(), half.sin()]))))
        ids = [index // columns * LATENT_SIDE + index % columns for index in range(len(x))]
        embeds = self.framed(self.lin("vae2llm", x) + time + self.w["latent_pos_embed.pos_embed"][ids])
        gen = list(range(1, len(embeds) - 1))
        return self.block(context, embeds, torch.full((len(embeds),), context.rope), gen, causal=False, keep=keep)

    def framed(self, x: Tensor) -> Tensor:
        table = self.w["language_model.model.embed_tokens.weight"]
        return torch.cat([table[BEGIN][None], x, table[END][None]])

    def vision(self, pixels: Tensor) -> Tensor:
        at, (rows, columns) = "vit_model.vision_model.", (pixels.shape[1] // PATCH, pixels.shape[2] // PATCH)
        cut = ((pixels - 0.5) / 0.5).reshape(3, rows, PATCH, columns, PATCH)
        ids = [row * VIT_SIDE + column for row in range(rows) for column in range(columns)]
        x = self.lin(f"{at}embeddings.patch_embedding", torch.einsum("chpwq->hwpqc", cut).reshape(rows * columns, -1))
        x = x + self.w[f"{at}embeddings.position_embedding.weight"][ids]
        for layer in range(VIT_LAYERS):
            name = f"{at}encoder.layers.{layer}."
            normed = self.ln(f"{name}layer_norm1", x)
            q, k, v = (
                self.lin(f"{name}self_attn.{one}_proj", normed).reshape(len(x), VIT_HEADS, -1).transpose(0, 1) for one in "qkv"
            )
            seen = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
            x = x + self.lin(f"{name}self_attn.out_proj", seen.transpose(0, 1).reshape(len(x), -1))
            inner = gelu(self.lin(f"{name}mlp.fc1", self.ln(f"{name}layer_norm2", x)), approximate="tanh")
            x = x + self.lin(f"{name}mlp.fc2", inner)
        x = self.lin("connector.fc1", self.ln(f"{at}post_layernorm", x))
        return self.lin("connector.fc2", gelu(x, approximate="tanh")) + self.w["vit_pos_embed.pos_embed"][ids]

    def ln(self, name: str, x: Tensor) -> Tensor:
        return layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-6)

    def block(self, context: Context, x: Tensor, positions: Tensor, gen: list[int], *, causal: bool, keep: bool) -> Tensor:
        """One block of tokens through all layers; tokens in ``gen`` by the weights that generate."""
        is_gen = torch.zeros(len(x), dtype=torch.bool)
        is_gen[gen] = True

        def routed(plain: Tensor, twin: Tensor) -> Tensor:
            return torch.where(is_gen.view(-1, *[1] * (plain.ndim - 1)), twin, plain)

        def rms(name: str, x: Tensor) -> Tensor:
            return routed(*(rms_norm(x, x.shape[-1:], self.w[f"{name}{twin}.weight"], 1e-6) for twin in ("", "_moe_gen")))

        def lin(module: str, x: Tensor, rest: str = "") -> Tensor:
            return routed(*(self.lin(f"{module}{twin}{rest}", x) for twin in ("", "_moe_gen")))

        head = DIM // HEADS
        angles = positions[:, None].float() / THETA ** (torch.arange(0, head, 2).float() / head)
        cos, sin = (torch.cat([one, one], dim=-1)[:, None] for one in (angles.cos(), angles.sin()))

        def turned(x: Tensor) -> Tensor:
            first, second = x.chunk(2, dim=-1)
            return x * cos + torch.cat([-second, first], dim=-1) * sin

        past = []
        for layer in range(LAYERS):
            at = f"language_model.model.layers.{layer}."
            normed = rms(f"{at}input_layernorm", x)
            q, k, v = (lin(f"{at}self_attn.{one}_proj", normed).unflatten(-1, (-1, head)) for one in "qkv")
            q, k = turned(rms(f"{at}self_attn.q_norm", q)), turned(rms(f"{at}self_attn.k_norm", k))
            if context.past:
                k, v = (torch.cat(pair) for pair in zip(context.past[layer], (k, v), strict=True))
            past.append((k, v))
            wide_k, wide_v = (one.repeat_interleave(HEADS // KV, dim=1) for one in (k, v))
            scores = torch.einsum("qhd,khd->hqk", q, wide_k) / math.sqrt(head)
            if causal:
                before = len(k) - len(x)
                seen = torch.arange(len(k))[None] <= torch.arange(len(x))[:, None] + before
                scores = scores.masked_fill(~seen, float("-inf"))
            mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), wide_v).flatten(1)
            x = x + lin(f"{at}self_attn.o_proj", mixed)
            normed = rms(f"{at}post_attention_layernorm", x)
            inner = silu(lin(f"{at}mlp", normed, ".gate_proj")) * lin(f"{at}mlp", normed, ".up_proj")
            x = x + lin(f"{at}mlp", inner, ".down_proj")
        if keep:
            context.past = past
        return rms("language_model.model.norm", x)

    def draw(self, noise: Tensor, contexts: list[Context], *, steps: int, shift: float, cfg: dict) -> Tensor:
        """Noise (h, w, C) to latents. ``contexts`` are with everything, without the text, without the images."""
        x, columns = patched(noise), noise.shape[1] // 2
        times = torch.linspace(1, 0, steps)
        times = shift * times / (1 + (shift - 1) * times)
        for t, after in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            v, text, image = (self.velocity(context, x, t, columns) for context in contexts)
            x = x - renormalised(v, text, image, t, **cfg) * (t - after)
        return unpatched(x, *noise.shape[:2])


def renormalised(
    v: Tensor, text: Tensor, image: Tensor, t: float, *, text_scale: float, image_scale: float, interval, renorm: str, least: float
) -> Tensor:
    """Published guidance, of one image."""
    if not interval[0] < t <= interval[1] or text_scale <= 1:
        return v
    by_text = text + text_scale * (v - text)

    def with_image(one: Tensor) -> Tensor:
        return image + image_scale * (one - image) if image_scale > 1 else one

    def per_token(one: Tensor) -> Tensor:
        return one * (v.norm(dim=-1, keepdim=True) / (one.norm(dim=-1, keepdim=True) + 1e-8)).clamp(min=least, max=1.0)

    if renorm == "text_channel":
        return with_image(per_token(by_text))
    both = with_image(by_text)
    return per_token(both) if renorm == "channel" else both * (v.norm() / (both.norm() + 1e-8)).clamp(min=least, max=1.0)


def patched(latents: Tensor) -> Tensor:
    """(h, w, C) to a row for each 2 x 2 of them."""
    rows, columns = latents.shape[0] // 2, latents.shape[1] // 2
    cut = latents.permute(2, 0, 1).reshape(CHANNELS, rows, 2, columns, 2)
    return torch.einsum("chpwq->hwpqc", cut).reshape(rows * columns, -1)


def unpatched(rows: Tensor, height: int, width: int) -> Tensor:
    cut = rows.reshape(height // 2, width // 2, 2, 2, CHANNELS)
    return torch.einsum("hwpqc->hpwqc", cut).reshape(height, width, CHANNELS)
