"""NEO: a conversation of two turns about an image. Give it Paranioar/NEO1_0-2B-SFT, or a folder."""

from tiny import QUESTION, SIZES, pipeline

from mmblocks import ByteTokenizer, Pipeline
from mmblocks.models import NEO
from mmblocks.models.chat_fronts import NEO_FRONT


def tiny() -> Pipeline:
    words = ByteTokenizer(["<|im_start|>", "<|im_end|>", "<img>", "</img>"])
    model = NEO(vocab_size=words.vocab_size, vision={"hidden_dim": 16, "patch_size": 2}, **SIZES).eval()
    return Pipeline(front=NEO_FRONT, model=model, text_tokenizer=words)


if __name__ == "__main__":
    pipe = pipeline(tiny)
    first = pipe.chat(QUESTION, max_tokens=20)
    print(first.text)
    second = pipe.chat([*QUESTION, first.message, {"role": "user", "content": "and what is it?"}], max_tokens=20)
    print(second.text)
