"""More tiny models as ``saved_models`` has them: whole models, tokenizers and towers, by their flat arguments.

To write the folders that are missing below FOLDER with the code of another checkout:

    PYTHONPATH=CHECKOUT python -m tests.shared.saved_wholes FOLDER
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.shared.saved_models import Numbers, Saved, filled, noise, pixels, public, write

LLAMA = {"vocab_size": 40, "dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 24}
TOWER = {"dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 24}
SHORT = {"num_tokens": 3, "image_size": 16, "patch_size": 8, "decoder_patch_size": 4}
SMALL = {"encoder_size": (16, 1, 2), "decoder_size": (8, 1, 2)}


def built(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    """Makes a public class's object."""
    return lambda: filled(public(name)(**arguments))


def image_of(height: int, width: int) -> Callable[[], Numbers]:
    """Makes one image in [0, 1]."""
    return lambda: {"pixels": pixels(1, 3, height, width)}


def read_and_write(model: Any, inputs: Numbers) -> Numbers:
    """States and losses of an image, a question and an answer."""
    sample = [public("image")(inputs["pixels"][0]), public("text")([1, 2]), public("text")([3, 4], target="text")]
    made = model(model.batch_builder()([sample]))
    return {"hidden": made.hidden, "losses": made.token_losses["text"]}


def read_latents(model: Any, inputs: Numbers) -> Numbers:
    """States of a text and of latents, and what the head of the latents makes of noise."""
    vectors = public("vectors")(inputs["latents"], input="latents", target="latents")
    batch = model.batch_builder()([[public("text")([30, 31], target="text"), vectors]])
    made = model(batch)
    sampled = model.outputs["latents"].sample(made.hidden[0, -4:], generator=torch.Generator().manual_seed(3))
    return {"hidden": made.hidden, "losses": made.token_losses["text"], "sampled": sampled}


def velocities(model: Any, inputs: Numbers) -> Numbers:
    """Of an image whose prompt has another."""
    prompt = [torch.tensor([1, 2]), inputs["given"], torch.tensor([3])]
    return {"made": model([prompt], [inputs["latents"]], torch.tensor([0.3]))[0]}


def predictions(model: Any, inputs: Numbers) -> Numbers:
    """Of two modalities at times of their own."""
    return model(dict(inputs), {"image": torch.tensor([1.0, 500.0]), "caption": torch.tensor([900.0, 1.0])})


def velocity(head: Any, inputs: Numbers) -> Numbers:
    """Of one image's states."""
    return {"made": head(inputs["states"], torch.tensor(0.3), (4, 6))}


def codes(tokenizer: Any, inputs: Numbers) -> Numbers:
    """Features, ids, and what the decoder makes of them."""
    latents = tokenizer.encode(inputs["pixels"])
    return {"features": tokenizer.features(inputs["pixels"]), "ids": latents.ids, "decoded": tokenizer.decode(latents.ids)}


def codes_and_text(tokenizer: Any, inputs: Numbers) -> Numbers:
    """Of a tokenizer whose decoder reads a text too."""
    latents = tokenizer.encode(inputs["pixels"])
    return {"ids": latents.ids, "decoded": tokenizer.decode(latents, text=inputs["text"])}


def states(model: Any, inputs: Numbers) -> Numbers:
    """Of a tower."""
    return {"states": model(inputs["pixels"])}


def masked(model: Any, inputs: Numbers) -> Numbers:
    """States of an image of which a part is known."""
    mask = torch.tensor([[True, False, True, True, False, True]])
    return {"states": model(inputs["tokens"], mask, torch.tensor([3]))}


def eva(**options: Any) -> Saved:
    """A tower of the EVA family."""
    return Saved(built("EvaTower", image_size=(28, 42), patch_size=14, **TOWER, **options), image_of(28, 42), states)


HALVES = {f"{half}_{name}": count for half in ("encoder", "decoder") for name, count in (("dim", 16), ("layers", 1), ("heads", 2))}

WHOLES: dict[str, Saved] = {
    "eve1": Saved(
        built("EVE1", **LLAMA, num_kv_heads=1, vision_dim=12, vision_heads=2, patch_size=2, teacher_image_size=42, image_size=84),
        image_of(8, 12),
        read_and_write,
    ),
    "eve2": Saved(
        built("EVE2", **LLAMA, num_kv_heads=1, vision_dim=12, patch_size=2, routed=("norms", "mlp")),
        image_of(8, 12),
        read_and_write,
    ),
    "orthus": Saved(
        built("Orthus", **LLAMA, num_codes=16, latent_dim=4, head_width=8, num_head_blocks=1, num_steps=3, post_norm=True),
        lambda: {"latents": noise(2, 2, 4)},
        read_latents,
    ),
    "omnigen": Saved(
        built("OmniGen", **LLAMA, num_kv_heads=1, table_size=8, base_size=8, interpolation=2.0),
        lambda: {"given": noise(4, 4, 4), "latents": noise(4, 4, 6, seed=2)},
        velocities,
    ),
    "velocity_head": Saved(built("VelocityHead", dim=16), lambda: {"states": noise(6, 16)}, velocity),
    "joint_denoiser": Saved(
        lambda: filled(
            public("JointDenoiser")(
                trunk=public("Decoder")(dim=16, num_layers=1, num_heads=2, mlp_dim=24),
                dim=16,
                shapes={"image": (2, 3, 4), "caption": (3, 2)},
            )
        ),
        lambda: {"image": noise(2, 2, 3, 4), "caption": noise(2, 3, 2, seed=2)},
        predictions,
    ),
    "neo_whole": Saved(
        built("NEO", **LLAMA, head_dim=8, num_prebuffer_layers=1, vision={"hidden_dim": 16, "patch_size": 4, "merge_size": 2}),
        image_of(16, 24),
        read_and_write,
    ),
    "mar": Saved(
        built("MAR", channels=2, grid=(2, 3), num_classes=5, num_class_tokens=2, **HALVES, mlp_ratio=2.0),
        lambda: {"tokens": noise(1, 6, 2)},
        masked,
    ),
    "eva_plain": eva(norm="rms", post_norm=True, activation="quick_gelu", norm_eps=1e-5, qkv_bias=False),
    "eva_gated": eva(swiglu=True, attention_norm=True, rope=True, rope_grid=(4, 4), layer_scale=0.1, any_size=True),
    "tatok": Saved(
        built(
            "TATok",
            **{**TOWER, "num_layers": 3},
            image_size=20,
            patch_size=10,
            num_codes=16,
            code_dim=8,
            decoder_layers=1,
            decoder_heads=2,
            decoder_mlp_dim=16,
            decoder_positions=4,
        ),
        image_of(20, 20),
        codes,
    ),
    "seed": Saved(
        lambda: filled(
            public("SEEDTokenizer")(
                encoder=public("EvaTower")(image_size=(28, 28), patch_size=14, **TOWER),
                image_size=(28, 28),
                encoder_dim=16,
                num_codes=32,
                num_queries=5,
                **TOWER,
                decoder_layers=1,
                decoder_heads=2,
                embed_dim=8,
                head="qformer",
            )
        ),
        image_of(28, 28),
        codes,
    ),
    "titok_first_stage": Saved(
        built("FirstStageTiTok", **SHORT, **SMALL, code_dim=6, num_codes=32, num_pixel_codes=9), image_of(16, 16), codes
    ),
    "titok_one_stage": Saved(built("OneStageTiTok", **SHORT, **SMALL, code_dim=6, num_codes=32), image_of(16, 16), codes),
    "tatitok": Saved(
        built("TATiTok", **SHORT, **SMALL, code_dim=6, num_codes=32, text_dim=7, text_length=3),
        lambda: {"pixels": pixels(1, 3, 16, 16), "text": noise(1, 3, 7)},
        codes_and_text,
    ),
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        for name, saved in WHOLES.items():
            if not (Path(sys.argv[1]) / name).exists():
                write(Path(sys.argv[1]) / name, saved)
