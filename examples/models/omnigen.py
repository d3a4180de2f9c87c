"""OmniGen: an image of a text, and an image changed as told. Give it Shitao/OmniGen-v1, or a folder."""

from tiny import PICTURE, keep, pipeline

from mmblocks import ByteTokenizer, Pipeline
from mmblocks.models import OmniGen, OmniGenFront
from mmblocks.tokenizers import DiffusersAutoencoder

AUTOENCODER = {
    "block_out_channels": [4] * 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "norm_num_groups": 2,
    "latent_channels": 4,
}


def tiny() -> Pipeline:
    words = ByteTokenizer(["<s>", "<|end|>", "<|user|>", "<|assistant|>"])
    sizes = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "table_size": 8}
    model = OmniGen(vocab_size=words.vocab_size, **sizes).eval()
    autoencoder = DiffusersAutoencoder(kind="AutoencoderKL", arguments=AUTOENCODER).eval()
    front = OmniGenFront(size=(32, 48), largest=128, input_size=64, num_steps=2)
    return Pipeline(front=front, model=model.model, text_tokenizer=words, image_tokenizer=autoencoder)


if __name__ == "__main__":
    pipe = pipeline(tiny)
    keep(pipe.generate_image("a red bicycle", seed=0)[0], "omnigen")
    keep(pipe.edit([PICTURE], "make it night", seed=0)[0], "omnigen_edit")
