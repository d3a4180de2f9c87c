"""Orthus: an answer about an image, and an image of a text. Give it SJTU-Deng-Lab/Orthus-7B-instruct, or a folder."""

from tiny import QUESTION, keep, pipeline

from mmblocks import ByteTokenizer, Generation, Pipeline, Sampling
from mmblocks.models import Orthus, OrthusFront
from mmblocks.tokenizers import ChameleonVQ


def tiny() -> Pipeline:
    words = ByteTokenizer(["<s>", "</s>", "<image>", "</image>", "<turn>"])
    sizes = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "num_codes": 8, "latent_dim": 4, "head_width": 8}
    model = Orthus(vocab_size=words.vocab_size, num_head_blocks=1, num_steps=2, **sizes).eval()
    stages = {"channels": 32, "multipliers": (1, 1), "num_blocks": 1, "latent_channels": 16}
    tokenizer = ChameleonVQ(num_codes=8, code_dim=4, image_size=12, **stages).eval()
    ids = {"begin": words["<s>"], "turn_end": words["<turn>"], "image_begin": words["<image>"], "image_end": words["</image>"]}
    options = Generation(max_tokens=12, sampling=Sampling(temperature=0))
    front = OrthusFront(**ids, stop=(words["</s>"],), never=(0, 1), image_size=(12, 12), grid=(6, 6), options=options)
    return Pipeline(front=front, model=model, text_tokenizer=words, image_tokenizer=tokenizer)


if __name__ == "__main__":
    pipe = pipeline(tiny)
    print(pipe.chat(QUESTION).text)
    keep(pipe.generate_image("a red bicycle", seed=0)[0], "orthus")
