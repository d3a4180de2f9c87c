"""Whole models as users meet them: Janus's images beside transformers', and chats about images, together and one by one.

    python -m benchmarks.whole_models --threads 1
    python -m benchmarks.whole_models janus --device cuda

Both sides of a comparison have the same random weights, and write the same ids greedily. An image has the published 24 x 24
codes. A chat is a question about an image and 64 tokens of answer, by an EVEv2 that reads images of up to 512 pixels; the four
images have different sizes. Where reading images takes most of the time, there is nothing to gain by a batch on a processor.
"""

import tempfile
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Comparison, Step, check, main
from mmblocks import GREEDY, ByteTokenizer, Generation, GridGrammar, Pipeline, text
from mmblocks.generation.guidance import ClassifierFree
from mmblocks.models import EVE2, Janus
from mmblocks.models.chat_fronts import EVE2_FRONT
from mmblocks.models.janus.prompts import JANUS_PROMPT
from mmblocks.pipelines import Chat, Settings
from mmblocks.vocabulary import raster_format

BOS, EOS, PAD, BEGIN = 1, 2, 0, 3
CODES, SIDE, LAYERS, DIM = 16384, 24, 4, 512
WORDS = [BOS, *range(10, 40), BEGIN]
SCALE = 5.0
"""Of the guidance."""

ANSWER = 64
"""Tokens of an answer."""

SHAPES = ((112, 160), (224, 96), (160, 160), (96, 256))
"""Heights and widths of the images that are talked about."""


@cache
def theirs(device: str) -> Any:
    """transformers' Janus."""
    import transformers

    torch.manual_seed(0)
    words = {"model_type": "llama", "vocab_size": 1000, "hidden_size": DIM, "intermediate_size": 1376, "num_hidden_layers": LAYERS}
    tower = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16 * SIDE, "projection_dim": DIM}
    stages = {
        "num_embeddings": CODES,
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "latent_channels": 32,
    }
    config = transformers.JanusConfig(
        text_config={**words, "num_attention_heads": 8, "num_key_value_heads": 8},
        vision_config={**tower, "num_image_tokens": SIDE**2},
        vq_config={**stages, "embed_dim": 8, "projection_dim": DIM, "image_token_embed_dim": DIM},
        image_token_id=4,
    )
    model = transformers.JanusForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.model.generation_head.vision_head.weight, std=0.2)  # so that rounding does not decide
    own = model.generation_config
    own.bos_token_id, own.eos_token_id, own.pad_token_id, own.generation_kwargs = BOS, EOS, PAD, {"boi_token_id": BEGIN}
    return model.to(device)


@cache
def ours(device: str) -> Janus:
    """The same weights."""
    with tempfile.TemporaryDirectory() as folder:
        theirs(device).save_pretrained(folder)
        model = Janus.from_pretrained(folder)
    return model.to(device)


def draw_ours(device: str) -> Step:
    """Both prompts in one batch."""
    model = ours(device)
    options = Generation(sampling=GREEDY, guidance=ClassifierFree(scale=SCALE), head="text")
    grammar = GridGrammar(raster_format(SIDE, SIDE, CODES), head="codes", input="codes")
    without = [[text(JANUS_PROMPT.unconditional(WORDS, PAD))]]

    def step() -> Tensor:
        ((_, made),) = model.generate([[text(WORDS)]], grammar, options, unconditional=without)
        return made.grid.flatten()

    return step


def draw_theirs(device: str) -> Step:
    """Their own way, which has both prompts in one batch too."""
    model, ids = theirs(device), torch.tensor([WORDS], device=device)
    options = {"generation_mode": "image", "do_sample": False, "guidance_scale": SCALE}
    return lambda: model.generate(inputs=ids, attention_mask=torch.ones_like(ids), **options)[0]


def janus(device: str) -> Comparison:
    """An image of Janus."""

    def difference() -> str:
        mine, other = draw_ours(device)(), draw_theirs(device)()
        equal = (mine == other.to(mine.device)).long().cumprod(0).float().mean().item()
        check(equal > 0.99, f"only {equal:.0%} of the codes are equal up to the first that differs")
        return f"{equal:.0%} of {SIDE * SIDE} codes are equal up to the first that differs, {len(mine.unique())} of them different"

    sides = {"ours": partial(draw_ours, device), "transformers": partial(draw_theirs, device)}
    title = f"Janus: an image of {SIDE}x{SIDE} codes, guided, {LAYERS} layers of width {DIM}"
    return Comparison(title, sides, difference, target=2, memory=False)


@cache
def chatting(device: str) -> Pipeline:
    """An EVEv2."""
    torch.manual_seed(0)
    words = ByteTokenizer(["<|im_end|>", "<|endoftext|>"])
    model = EVE2(
        vocab_size=words.vocab_size, dim=DIM, num_layers=LAYERS, num_heads=8, mlp_dim=1376, vision_dim=256, max_size=512
    ).eval()
    torch.nn.init.normal_(model.outputs["text"].weight, std=0.1)
    return Pipeline(front=EVE2_FRONT, model=model.to(device), text_tokenizer=words)


def chats() -> list[Chat]:
    """Four questions about images of four sizes."""
    generator = torch.Generator().manual_seed(1)
    pictures = [torch.randint(256, (3, *shape), generator=generator, dtype=torch.uint8) for shape in SHAPES]
    settings = Settings(max_tokens=ANSWER, sampling=GREEDY)
    return [Chat([{"role": "user", "content": [one, "what is this?"]}], settings) for one in pictures]


def together(device: str) -> Step:
    """All in one batch."""
    return lambda: [reply.text for reply in chatting(device).run(chats(), progress=False)]


def one_by_one(device: str) -> Step:
    """A batch for each."""
    return lambda: [reply.text for chat in chats() for reply in chatting(device).run([chat], progress=False)]


def chat(device: str) -> Comparison:
    """Four chats."""

    def difference() -> str:
        found, wanted = together(device)(), one_by_one(device)()
        check(found == wanted, "answers differ")
        return f"the same {len(found)} answers"

    sides = {"together": partial(together, device), "one by one": partial(one_by_one, device)}
    title = f"EVEv2: 4 chats about images of 4 sizes, {ANSWER} tokens each, {LAYERS} layers of width {DIM}"
    return Comparison(title, sides, difference, target=1.5, memory=False)


COMPARISONS = {"janus": janus, "chat": chat}

if __name__ == "__main__":
    main("benchmarks.whole_models", COMPARISONS, __doc__)
