"""Emu3-Chat: questions about images. Give it BAAI/Emu3-Chat, or a folder."""

from dataclasses import replace

from tiny import EMU3_CODES, EMU3_WORDS, NUM_CODES, QUESTION, SIZES, image_tokenizer, pipeline

from mmblocks import Pipeline
from mmblocks.models import Emu3
from mmblocks.models.emu3.front import EMU3_CHAT


def tiny() -> Pipeline:
    model = Emu3(vocab_size=EMU3_WORDS.vocab_size + NUM_CODES, **SIZES).eval()
    front = replace(EMU3_CHAT, codes=EMU3_CODES)
    return Pipeline(front=front, model=model, text_tokenizer=EMU3_WORDS, image_tokenizer=image_tokenizer())


if __name__ == "__main__":
    pipe = pipeline(tiny)
    for piece in pipe.chat(QUESTION, max_tokens=20, seed=0, stream=True):
        print(piece, end="", flush=True)
    print()
