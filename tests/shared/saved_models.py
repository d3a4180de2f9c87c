"""Tiny models, saved by the code of one version and loaded by that of later ones: see tests/checkpoints/test_saved_before.py.

To write the folders that are missing below FOLDER with the code of another checkout:

    PYTHONPATH=CHECKOUT python tests/shared/saved_models.py FOLDER

Each folder holds ``model``, as ``save_pretrained`` wrote it, and ``numbers.safetensors``: inputs, and what the model made of them.
Folders that are there are never written anew.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mmblocks

Numbers = dict[str, Tensor]

ROWS, LENGTH, WIDTH, CUT = 2, 12, 16, 7
SIZES = {"dim": WIDTH, "num_layers": 2, "num_heads": 4, "mlp_dim": 24}
LONG = {"type": "longrope", "factor": 2.0, "max_position": 8, "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]}


class Saved(NamedTuple):
    """A model.

    Attributes:
        build: makes it, with any weights.
        inputs: makes what it reads.
        run: what a model makes of the inputs.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], Numbers]
    run: Callable[[Any, Numbers], Numbers]


def public(name: str) -> Any:
    """A class or function of any version of mmblocks."""
    find = getattr(sys.modules.get("mmblocks.public"), "find", None)
    return getattr(mmblocks, name) if find is None else find(name)


def filled(block: nn.Module) -> nn.Module:
    """The block with other values in every parameter, the same in every version."""
    generator = torch.Generator().manual_seed(0)
    for _, parameter in sorted(block.named_parameters()):
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return block.eval()


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Numbers of a normal distribution."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixels(*shape: int) -> Tensor:
    """Images in [0, 1]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(2))


def table() -> Any:
    """Two rows: a document with an image seen at once and one with an image read causally; an image and its noised copy, padded."""
    square, pair = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]], [[0, 0, 0], [0, 0, 1]]
    text = [[0, 0, 0]]
    return public("TokenTable")(
        modality=torch.tensor([[0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 1], [-1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0]]),
        document=torch.tensor([[0] * 9 + [1] * 3, [-1] + [0] * 11]),
        span=torch.tensor([[-1, -1, -1, 0, 0, 0, 0, -1, -1, -1, 0, 0], [-1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, -1]]),
        grid=torch.tensor([[*text * 3, *square, *text * 3, *pair], [*text * 3, *square, *square, *text]]),
        order=torch.tensor([[0, 1, 2, 3, 3, 3, 3, 4, 5, 0, 1, 2], [0, 0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3]]),
        noisy=torch.tensor([[False] * 12, [False] * 7 + [True] * 4 + [False]]),
        target=torch.full((ROWS, LENGTH), -1),
    )


def embeddings() -> Numbers:
    """What a trunk reads."""
    return {"embeds": noise(ROWS, LENGTH, WIDTH)}


def run_trunk(trunk: Any, inputs: Numbers) -> Numbers:
    """States of all tokens that are no padding, read at once and in two parts."""
    whole, context = table(), {name: values for name, values in inputs.items() if name != "embeds"}
    embeds, real = inputs["embeds"], ~whole.is_padding
    cache = trunk.new_cache(ROWS, LENGTH)
    first = trunk(embeds[:, :CUT], whole.slice(0, CUT), cache, **context)
    second = trunk(embeds[:, CUT:], whole.slice(CUT, LENGTH), cache)
    return {
        "hidden": trunk(embeds, whole, **context)[real],
        "in_two_parts": torch.cat([first, second], dim=1)[real],
    }


def trunk(name: str, **options: Any) -> Saved:
    """A trunk of two layers."""
    return Saved(lambda: filled(public(name)(**{**SIZES, **options})), embeddings, run_trunk)


def around_a_decoder(name: str, context: Callable[[], Numbers] = dict, **options: Any) -> Saved:
    """A trunk that holds a Decoder."""

    def build() -> nn.Module:
        inside = public("Decoder")(**SIZES, num_kv_heads=2)
        return filled(public(name)(trunk=inside, **options))

    return Saved(build, lambda: {**embeddings(), **context()}, run_trunk)


def multimodal() -> nn.Module:
    """Text, images as patches, vectors; a head over ids and one that predicts vectors."""
    heads = {
        "lm": public("LMHead")(dim=WIDTH, vocab_size=40),
        "image": public("RegressionHead")(dim=WIDTH, target_dim=6, distance="cosine", bias=True),
    }
    inputs = {
        "text": public("TextEmbedding")(vocab_size=40, dim=WIDTH),
        "vision": public("EVE2PatchEmbedding")(dim=WIDTH, hidden_dim=12, patch_size=2, merge_size=2),
        "patches": public("LinearPatchEmbedding")(dim=WIDTH, patch_size=4),
        "vectors": public("MLPProjector")(in_dim=6, hidden_dim=10, dim=WIDTH),
    }
    trunk = public("Decoder")(**SIZES, num_kv_heads=2, qk_norm=True)
    return filled(public("MultimodalModel")(inputs=inputs, trunk=trunk, outputs=heads))


def run_multimodal(model: Any, inputs: Numbers) -> Numbers:
    """States and losses of two samples, and logits and vectors of the heads."""
    text, image, vectors = public("text"), public("image"), public("vectors")
    samples = [
        [
            text([1, 2, 3]),
            image(inputs["large"]),
            text([4, 5], target="lm"),
            vectors(inputs["features"], input="vectors", target="image"),
        ],
        [image(inputs["small"], input="patches"), text([6, 7, 8, 9], target="lm")],
    ]
    batch = model.batch_builder()(samples)
    made = model(batch)
    hidden = made.hidden[~batch.table.is_padding]
    losses = {f"losses.{name}": values for name, values in made.token_losses.items()}
    heads = {name: model.outputs[name] for name in ("lm", "image")}
    return {"hidden": hidden, **losses, "logits": heads["lm"].logits(hidden), "vectors": heads["image"].sample(hidden)}


def small_multimodal() -> nn.Module:
    """Text, images and one head: what there was when folders had no checksums yet."""
    inputs = {
        "text": public("TextEmbedding")(vocab_size=40, dim=WIDTH),
        "vision": public("EVE2PatchEmbedding")(dim=WIDTH, hidden_dim=12, patch_size=2, merge_size=2),
    }
    trunk = public("Decoder")(**SIZES, num_kv_heads=2, qkv_bias=True)
    return filled(public("MultimodalModel")(inputs=inputs, trunk=trunk, outputs={"lm": public("LMHead")(dim=WIDTH, vocab_size=40)}))


def run_small_multimodal(model: Any, inputs: Numbers) -> Numbers:
    """States and losses of one sample."""
    sample = [public("text")([1, 2, 3]), public("image")(inputs["large"]), public("text")([4, 5], target="lm")]
    made = model(model.batch_builder()([sample]))
    return {"hidden": made.hidden, "losses.lm": made.token_losses["lm"]}


def tokenizer() -> nn.Module:
    """A tokenizer put together of parts, with several codebooks."""
    parts = public("ConvVQ")(channels=(8, 12), num_codes=2, code_dim=6)
    return filled(
        public("VisualTokenizer")(
            encoder=parts.encoder,
            bottleneck=public("MultiCodebook")(num_codebooks=2, num_codes=16, code_dim=3),
            decoder=parts.decoder,
            downsampling=(4, 4),
            mean=(0.4, 0.5, 0.6),
        )
    )


def run_tokenizer(tokenizer: Any, inputs: Numbers) -> Numbers:
    """Codes, what the decoder reads, and the images of the codes."""
    latents = tokenizer.encode(inputs["pixels"])
    return {"ids": latents.ids, "z": latents.z, "decoded": tokenizer.decode(latents.ids)}


def images() -> Numbers:
    """What a tokenizer reads."""
    return {"pixels": pixels(2, 3, 8, 12)}


def samples() -> Numbers:
    """What a multimodal model reads beside its text."""
    return {"large": pixels(3, 8, 12), "small": pixels(3, 4, 8), "features": noise(3, 6)}


SAVED: dict[str, Saved] = {
    "multimodal": Saved(multimodal, samples, run_multimodal),
    "without_checksums": Saved(small_multimodal, lambda: {"large": pixels(3, 8, 12)}, run_small_multimodal),
    "conv_vq": Saved(lambda: filled(public("ConvVQ")(channels=(8, 12), num_codes=24, code_dim=4)), images, run_tokenizer),
    "two_codebooks": Saved(tokenizer, images, run_tokenizer),
    "decoder": trunk(
        "Decoder",
        num_kv_heads=2,
        head_dim=6,
        norm_eps=1e-3,
        rope_theta=500.0,
        rope_scaling={"type": "dynamic", "factor": 2.0, "max_position": 4},
        qk_norm=True,
        qkv_bias=True,
    ),
    "decoder_of_sections": trunk("Decoder", head_dim=8, rope_sections=(2, 1, 1)),
    "routed": trunk("RoutedDecoder", num_kv_heads=2, qk_norm=True, qkv_bias=True, routed=("norms", "mlp")),
    "routed_everywhere": trunk("RoutedDecoder", rope_scaling={"type": "linear", "factor": 2.0}),
    "experts": trunk("MoEDecoder", num_kv_heads=2, num_experts=3, experts_per_token=2),
    "neo": trunk("NEOTrunk", head_dim=8, num_kv_heads=2, num_prebuffer_layers=1, rope_theta=100.0),
    "chameleon": trunk("ChameleonTrunk", num_kv_heads=2),
    "chameleon_post_norm": trunk("ChameleonTrunk", post_norm=True),
    "modality_lora": trunk("ModalityLoRADecoder", rank=2, alpha=3.0, maps=("query", "output", "up"), qkv_bias=True),
    "slide_lora": trunk("SlideLoRADecoder", rank=2, alpha=3.0, num_experts=3),
    "llamagen": trunk("LlamaGenTrunk", dropout=0.0, num_kv_heads=2),
    "phi3": trunk("Phi3Decoder", num_kv_heads=2, rope_scaling=LONG),
    "gated": around_a_decoder(
        "GatedCrossAttentionDecoder",
        lambda: {"images": noise(ROWS, 2, 3, 10, seed=3)},
        context_dim=10,
        every=2,
        num_heads=2,
        head_dim=6,
    ),
    "pruned": around_a_decoder("PrunedDecoder", pruning=((1, 0.5),)),
    "pruned_by_images": around_a_decoder("PrunedDecoder", pruning=((1, 0.5),), importance="visual"),
}


@torch.no_grad()
def write(folder: Path, saved: Saved) -> None:
    """One model and its numbers."""
    model, inputs = saved.build(), saved.inputs()
    model.save_pretrained(folder / "model")
    outputs = saved.run(model, inputs)
    numbers = {f"inputs/{name}": values for name, values in inputs.items()}
    numbers |= {f"outputs/{name}": values.contiguous() for name, values in outputs.items()}
    save_file(numbers, folder / "numbers.safetensors")


def read(folder: Path) -> tuple[Numbers, Numbers]:
    """Inputs and outputs."""
    numbers = load_file(folder / "numbers.safetensors")
    groups: dict[str, Numbers] = {"inputs": {}, "outputs": {}}
    for key, values in numbers.items():
        group, _, name = key.partition("/")
        groups[group][name] = values
    return groups["inputs"], groups["outputs"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, saved in SAVED.items():
        if not (Path(sys.argv[1]) / name).exists():
            write(Path(sys.argv[1]) / name, saved)
