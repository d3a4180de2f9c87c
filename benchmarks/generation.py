"""Decoding an image's codes beside transformers' ``generate`` with its guidance and prefix constraint, on the same weights.

    python -m benchmarks.generation                    # float32 and bfloat16
    python -m benchmarks.generation bf16 --device cuda --repeats 3 --json figures.jsonl
    python -m benchmarks.generation graphs --device cuda       # steps as CUDA graphs, beside steps launched kernel by kernel

An Emu3-shaped trunk of reduced depth under Emu3's real vocabulary of 184622 ids: at its real width on a GPU, at a quarter of
it on a CPU. transformers runs the unconditional prompt as a second model call, and computes all logits of both; ours runs both rows
in one call, and computes the rows of the head that hold visual codes. Weights are random, and the image is decoded greedily.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Comparison, Step, check, main
from mmblocks import Generation, GridGrammar, text
from mmblocks.layers.categorical import GREEDY
from mmblocks.models import Emu3
from mmblocks.trunks.caches.kv_cache import cache_bytes
from mmblocks.trunks.caches.static_cache import StaticCache
from mmblocks.vocabulary import EMU3

VOCABULARY = 184622
SCALE = 3.0
"""Of the guidance."""

BOS, PROMPT = 151849, tuple(range(1000, 1024))
"""Ids of the prompt."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
AGREEMENT = {"fp32": 1.0, "bf16": 0.5}
"""Share of ids that must be equal up to the first that differs. In half precision one row and two are not rounded alike."""


def size(device: str) -> tuple[int, int]:
    """Height and width of the image in tokens."""
    return (24, 24) if device == "cuda" else (4, 6)


def heads_of(device: str) -> list[list[int]]:
    """The two prompts, each up to the image's first code."""
    head = EMU3.head(*size(device))
    return [[BOS, *PROMPT, *head], [BOS, *head]]


@cache
def ours(device: str, dtype: torch.dtype) -> Emu3:
    """The model."""
    torch.manual_seed(0)
    wide = device == "cuda"
    with torch.device(device):
        model = Emu3(
            vocab_size=VOCABULARY,
            dim=4096 if wide else 1024,
            num_layers=8 if wide else 4,
            num_heads=32 if wide else 8,
            num_kv_heads=8 if wide else 2,
            mlp_dim=14336 if wide else 3584,
        )
    # Logits far enough apart that rounding does not decide which is largest.
    torch.nn.init.normal_(model.outputs["text"].weight, std=0.1)
    return model.to(dtype).eval()


@cache
def theirs(device: str, dtype: torch.dtype) -> Any:
    """transformers' model on the same tensors."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = ours(device, dtype)
    config = model.config
    published = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=config["dim"],
        num_hidden_layers=config["num_layers"],
        num_attention_heads=config["num_heads"],
        num_key_value_heads=config["num_kv_heads"],
        intermediate_size=config["mlp_dim"],
        rms_norm_eps=config["norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
        max_position_embeddings=9216,
        tie_word_embeddings=False,
        pad_token_id=151643,
        bos_token_id=None,
        eos_token_id=None,
    )
    (layout,) = (layout for layout in Emu3.layouts if layout.name == "emu3")
    weights = dict(layout.convert(model.state_dict(), config, to="theirs"))
    rival = LlamaForCausalLM(published).to(device, dtype).eval()
    rival.load_state_dict(weights, assign=True)
    return rival


def capacity(device: str) -> int:
    """Tokens of a row that a cache must hold."""
    return len(heads_of(device)[0]) + EMU3.length(*size(device)) - 1


def decode_ours(device: str, dtype: torch.dtype, cuda_graphs: bool | None = None) -> Step:
    """Both prompts in one batch; through a static cache if it is said whether with CUDA graphs."""
    model = ours(device, dtype)
    conditional, unconditional = ([text(ids)] for ids in heads_of(device))
    height, width = size(device)

    def step() -> Tensor:
        grammar = GridGrammar(EMU3, size=(height, width))
        cache = None
        if cuda_graphs is not None:
            cache = StaticCache(model.trunk.new_cache(2, capacity(device)), cuda_graphs=cuda_graphs)
        options = Generation(sampling=GREEDY, guidance=SCALE)
        found = model.generate([conditional], grammar, options, unconditional=[unconditional], cache=cache)
        ((_, segment),) = found
        return segment.grid

    return step


def decode_theirs(device: str, dtype: torch.dtype) -> Step:
    """With Emu3's constraint as a function of the ids written so far."""
    model = theirs(device, dtype)
    height, width = size(device)
    conditional, unconditional = (torch.tensor([ids], device=device) for ids in heads_of(device))
    expected = EMU3.expected(torch.arange(EMU3.length(height, width)), height, width).tolist()
    codes = EMU3.codes.ids(device=device)
    single = {i: torch.tensor([i], device=device) for i in set(expected)}

    def allowed(batch: int, ids: Tensor) -> Tensor:
        only = expected[len(ids) - conditional.shape[1]]
        return codes if only < 0 else single[only]

    @torch.no_grad()
    def step() -> Tensor:
        written = model.generate(
            conditional,
            attention_mask=torch.ones_like(conditional),
            do_sample=False,
            max_new_tokens=len(expected),
            guidance_scale=SCALE,
            negative_prompt_ids=unconditional,
            prefix_allowed_tokens_fn=allowed,
        )
        image = [*EMU3.head(height, width), *written[0, conditional.shape[1] :].tolist()]
        return EMU3.read_image(image)

    return step


def comparison(name: str, device: str) -> Comparison:
    """One precision."""
    dtype = DTYPES[name]
    height, width = size(device)

    def difference() -> str:
        mine, other = (make(device, dtype)().flatten() for make in (decode_ours, decode_theirs))
        equal = (mine == other).long().cumprod(0).float().mean().item()
        check(equal >= AGREEMENT[name], f"only {equal:.0%} of the codes are equal up to the first that differs")
        model = ours(device, dtype)
        config = model.config
        room = cache_bytes(
            num_layers=config["num_layers"],
            num_heads=config["num_kv_heads"],
            head_dim=model.trunk.layers[0].memory.head_dim,
            batch=2,
            capacity=capacity(device),
            dtype=dtype,
        )
        return (
            f"{equal:.0%} of {height * width} codes are equal up to the first that differs; our cache takes {room / 2**20:.1f} MiB"
        )

    sides = {"ours": lambda: decode_ours(device, dtype), "transformers": lambda: decode_theirs(device, dtype)}
    layers, dim = (8, 4096) if device == "cuda" else (4, 1024)
    title = f"an image of {height}x{width} codes, guided, {name}, through {layers} layers of width {dim} and {VOCABULARY} ids"
    return Comparison(title, sides, difference, target=2, memory=False)


def fp32(device: str) -> Comparison:
    """In float32."""
    return comparison("fp32", device)


def bf16(device: str) -> Comparison:
    """In bfloat16."""
    return comparison("bf16", device)


def graphs(device: str) -> Comparison:
    """Our steps recorded as CUDA graphs, beside the same steps launched kernel by kernel."""
    check(device == "cuda", "CUDA graphs need --device cuda")
    dtype = DTYPES["bf16"]

    def difference() -> str:
        recorded, launched = (decode_ours(device, dtype, cuda_graphs)().flatten() for cuda_graphs in (True, False))
        equal = (recorded == launched).float().mean().item()
        check(equal == 1, f"only {equal:.0%} of the codes are equal")
        return "the same codes"

    sides = {
        "CUDA graphs": lambda: decode_ours(device, dtype, True),
        "kernel by kernel": lambda: decode_ours(device, dtype, False),
    }
    height, width = size(device)
    return Comparison(f"an image of {height}x{width} codes, guided, bf16, through a static cache", sides, difference, memory=False)


COMPARISONS = {"fp32": fp32, "bf16": bf16}

if __name__ == "__main__":
    main("benchmarks.generation", COMPARISONS, __doc__, on_request={"graphs": graphs})
