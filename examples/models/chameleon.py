"""Chameleon: answers of text, and images where it may write them. Give it facebook/chameleon-7b, or a folder."""

from dataclasses import replace

from tiny import NUM_CODES, PICTURE, SIZES, image_tokenizer, keep, pipeline

from mmblocks import ByteTokenizer, GridFormat, Pipeline
from mmblocks.models import Chameleon, ChameleonFront
from mmblocks.models.chameleon.prompts import CHAMELEON_PROMPT
from mmblocks.vocabulary import CodeIds


def tiny() -> Pipeline:
    words = ByteTokenizer(["<s>", "</s>", "<begin>", "<end>", "<turn>"])
    codes = CodeIds(sizes=(NUM_CODES,), first=words.vocab_size)
    form = GridFormat(begin=words["<begin>"], closing=(words["<end>"],), codes=codes, fixed_size=(2, 4))
    ids = {"stop": (words["</s>"],), "bos": words["<s>"], "turn_end": words["<turn>"]}
    prompt = replace(CHAMELEON_PROMPT, format=form, max_tokens=20, **ids)
    model = Chameleon(vocab_size=words.vocab_size + NUM_CODES, **SIZES).eval()
    front = ChameleonFront(prompt=prompt, size=(4, 8), step=2, num_images=1)
    return Pipeline(front=front, model=model, text_tokenizer=words, image_tokenizer=image_tokenizer())


if __name__ == "__main__":
    question = {"role": "user", "content": [PICTURE.resize((8, 4)), "what colour is this?"]}
    reply = pipeline(tiny).chat([question], seed=0)
    print(reply.text)
    for picture in reply.images:
        keep(picture, "chameleon")
