"""Emu2-Chat: answers about images, which it reads as embeddings. Give it BAAI/Emu2-Chat, or a folder."""

from tiny import QUESTION, SIZES, pipeline

from mmblocks import ByteTokenizer, Pipeline
from mmblocks.models import Emu2
from mmblocks.models.emu2.front import EMU2_CHAT_FRONT


def tiny() -> Pipeline:
    words = ByteTokenizer(["<s>", "</s>", "[IMG]", "[/IMG]", "[VIDEO]", "[USER]", "[ASSISTANT]"])
    vision = {"image_size": (28, 28), "patch_size": 7, "dim": 8, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
    model = Emu2(vocab_size=words.vocab_size, num_tokens=4, frame_tokens=1, vision=vision, **SIZES).eval()
    return Pipeline(front=EMU2_CHAT_FRONT, model=model, text_tokenizer=words)


if __name__ == "__main__":
    print(pipeline(tiny).chat(QUESTION, max_tokens=20).text)
