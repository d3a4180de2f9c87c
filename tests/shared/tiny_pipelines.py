"""Pipelines of a few thousand weights, with Emu3's special tokens and format at a small vocabulary."""

from dataclasses import replace

import torch

from mmblocks import GridFormat, Pipeline, TokenizerFile
from mmblocks.models import Emu3, Emu3GenFront, Emu35Front
from mmblocks.models.emu3.front import EMU3_CHAT
from mmblocks.tokenizers import ConvVQ
from mmblocks.vocabulary import CodeIds
from tests.shared.tiny_tokenizers import byte_level

NAMES = [
    *("<|extra_203|>", "<|extra_204|>", "<|image start|>", "<|image token|>"),
    *("<|extra_200|>", "<|extra_201|>", "<|image end|>", "<|extra_100|>"),
]
TOKENIZER = TokenizerFile.of(byte_level(NAMES))
NUM_CODES, STEP = 16, 2

EMU3_FORM = GridFormat(
    begin=TOKENIZER["<|image start|>"],
    image=TOKENIZER["<|image token|>"],
    row_end=TOKENIZER["<|extra_200|>"],
    last_row_end=True,
    closing=(TOKENIZER["<|extra_201|>"], TOKENIZER["<|image end|>"]),
    digits=tuple(TOKENIZER.encode(str(digit))[0] for digit in range(10)),
    times=TOKENIZER.encode("*")[0],
    codes=CodeIds(sizes=(NUM_CODES,), first=TOKENIZER.vocab_size),
)
EMU35_FORM = replace(EMU3_FORM, last_row_end=False, closing=(TOKENIZER["<|image end|>"],))


def image_tokenizer() -> ConvVQ:
    torch.manual_seed(1)
    return ConvVQ(channels=(8,), num_codes=NUM_CODES, code_dim=4).eval()


def emu3() -> Emu3:
    torch.manual_seed(0)
    return Emu3(vocab_size=TOKENIZER.vocab_size + NUM_CODES, dim=32, num_layers=1, num_heads=2, mlp_dim=32).eval()


def pipeline(kind: str) -> Pipeline:
    """A pipeline "gen", "chat" or "3.5"."""
    front = {
        "gen": Emu3GenFront(codes=EMU3_FORM, size=(8, 12), step=STEP),
        "chat": replace(EMU3_CHAT, codes=EMU3_FORM),
        "3.5": Emu35Front(codes=EMU35_FORM, size=(3, 4), step=STEP, num_images=2),
    }[kind]
    return Pipeline(front=front, model=emu3(), text_tokenizer=TOKENIZER, image_tokenizer=image_tokenizer())
