"""EVA-CLIP: a picture named, and found among others. Give it EVA02_CLIP_L_psz14_s4B.pt, or a folder."""

import sys

import torch
from PIL import Image
from tiny import PICTURE

from mmblocks import ZeroShot
from mmblocks.encoders import EVACLIP


def tiny() -> ZeroShot:
    torch.manual_seed(0)
    tower = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "image_size": (28, 28), "patch_size": 14}
    text = {"embed_dim": 8, "dim": 16, "num_layers": 1, "num_heads": 2}
    return ZeroShot(EVACLIP(vision={"tower": tower, "embed_dim": 8}, text=text).eval())


if __name__ == "__main__":
    zero_shot = ZeroShot.from_pretrained(sys.argv[1]) if len(sys.argv) > 1 else tiny()
    (scores,) = zero_shot.classify([PICTURE], ["a red square", "a blue sea", "a cat"])
    for label, probability in scores.items():
        print(f"{probability:6.1%}  {label}")
    others = [PICTURE, Image.new("RGB", (30, 20), (0, 0, 200)), Image.new("RGB", (20, 20), (0, 120, 0))]
    print(zero_shot.search(others, "a blue sea", top=2))
