"""EVE and EVEv2: questions about images, read without an image encoder. Give it BAAI/EVE-7B-HD-v2.0, or a folder."""

from tiny import QUESTION, SIZES, pipeline

from mmblocks import ByteTokenizer, Pipeline
from mmblocks.models import EVE2
from mmblocks.models.chat_fronts import EVE2_FRONT


def tiny() -> Pipeline:
    words = ByteTokenizer(["<|im_end|>", "<|endoftext|>"])
    model = EVE2(vocab_size=words.vocab_size, patch_size=2, max_size=16, vision_dim=16, **SIZES).eval()
    return Pipeline(front=EVE2_FRONT, model=model, text_tokenizer=words)


if __name__ == "__main__":
    print(pipeline(tiny).chat(QUESTION, max_tokens=20, seed=0).text)
