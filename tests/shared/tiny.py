"""The smallest models that use every mechanism."""

import torch

from mmblocks import ByteTokenizer, Decoder, GridFormat, LMHead, MultimodalModel, TextEmbedding
from mmblocks.embedders import EVE2PatchEmbedding
from mmblocks.vocabulary import CodeIds

TOKENIZER = ByteTokenizer(specials=("<bos>", "<eos>", "<boi>", "<img>", "<eol>", "<eof>", "<eoi>"))
NUM_CODES = 12
FORMAT = GridFormat(
    begin=TOKENIZER["<boi>"],
    image=TOKENIZER["<img>"],
    row_end=TOKENIZER["<eol>"],
    last_row_end=True,
    closing=(TOKENIZER["<eof>"], TOKENIZER["<eoi>"]),
    digits=tuple(b"0123456789"),
    times=ord("*"),
    codes=CodeIds(sizes=(NUM_CODES,), first=TOKENIZER.vocab_size),
)
VOCABULARY = TOKENIZER.vocab_size + NUM_CODES
EOS = TOKENIZER["<eos>"]
WIDTH = 32


def tiny_model(**options) -> MultimodalModel:
    """Text and codes in one vocabulary, images through EVEv2's stem, a two-layer trunk, one head."""
    torch.manual_seed(0)
    parts = {
        "inputs": {
            "text": TextEmbedding(vocab_size=VOCABULARY, dim=WIDTH),
            "vision": EVE2PatchEmbedding(dim=WIDTH, hidden_dim=16, patch_size=2, merge_size=2),
        },
        "trunk": Decoder(dim=WIDTH, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=48),
        "outputs": {"lm": LMHead(dim=WIDTH, vocab_size=VOCABULARY)},
    }
    return MultimodalModel(**{**parts, **options})
