"""Emu3.5: a story of text and images, and an image changed as told. Give it BAAI/Emu3.5, or a folder."""

from dataclasses import replace

from tiny import EMU3_CODES, EMU3_WORDS, NUM_CODES, PICTURE, SIZES, image_tokenizer, keep, pipeline

from mmblocks import Pipeline
from mmblocks.models import Emu3, Emu35Front


def tiny() -> Pipeline:
    model = Emu3(vocab_size=EMU3_WORDS.vocab_size + NUM_CODES, **SIZES).eval()
    codes = replace(EMU3_CODES, last_row_end=False, closing=(EMU3_WORDS["<|image end|>"],))
    front = Emu35Front(codes=codes, size=(3, 4), step=2, num_images=2)
    return Pipeline(front=front, model=model, text_tokenizer=EMU3_WORDS, image_tokenizer=image_tokenizer())


if __name__ == "__main__":
    pipe = pipeline(tiny)
    reply = pipe.chat([{"role": "user", "content": "how does a seed become a tree?"}], max_tokens=60, seed=0)
    print(reply.text)
    for number, picture in enumerate(reply.images):
        keep(picture, f"emu35_story_{number}")
    (changed,) = pipe.edit([PICTURE], "make it night", seed=0)
    keep(changed, "emu35_edit")
