"""Emu-I: answers about images, which a causal former turns into embeddings. Give it a folder that a pipeline has saved."""

from tiny import QUESTION, SIZES, pipeline

from mmblocks import ByteTokenizer, Pipeline
from mmblocks.models import Emu
from mmblocks.models.emu.front import EMU_INSTRUCT_FRONT


def tiny() -> Pipeline:
    words = ByteTokenizer(["<s>", "</s>", "[IMG]", "[/IMG]", "[USER]", "[ASSISTANT]"])
    vision = {"image_size": (28, 28), "dim": 12, "num_layers": 1, "num_heads": 2, "mlp_dim": 20}
    former = {"num_queries": 3, "hidden_dim": 8, "num_layers": 1, "num_heads": 2, "head_dim": 4, "mlp_dim": 8}
    model = Emu(vocab_size=words.vocab_size, embed_dim=6, vision=vision, former=former, **SIZES).eval()
    return Pipeline(front=EMU_INSTRUCT_FRONT, model=model, text_tokenizer=words)


if __name__ == "__main__":
    print(pipeline(tiny).chat(QUESTION, max_tokens=20).text)
