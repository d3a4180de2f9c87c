"""EVEv2's patch stem, on ready pixels and from the image on."""

from PIL import Image

from mmblocks.embedders import EVE2PatchEmbedding
from mmblocks.layers.images.pixels import denormalise, normalise
from tests.parity.cases import Case

MANIFESTS = {"eve_7b_hd_v2": [(EVE2PatchEmbedding, "eve2")]}


def run(case: Case) -> None:
    stem = load(case)
    mean, std = case.config["image_mean"], case.config["image_std"]
    stored = [case.io[f"in.pixel_values_{i}"] for i in range(len(case.named("in.pixel_values_")))]
    images = [denormalise(pixels, mean, std).clamp(0, 1) for pixels in stored]
    tokens = stem(images)
    for number in range(len(images)):
        case.check(f"out.embeds_{number}", tokens.embeds[tokens.image == number])
        photo = Image.fromarray(case.io[f"in.image_{number}"].numpy())
        case.check(f"in.pixel_values_{number}", normalise(stem.preprocess(photo), mean, std))


def load(case: Case) -> EVE2PatchEmbedding:
    config = {
        "hidden_size": case.config["output_size"],
        "mm_hidden_size": case.config["input_size(mm_hidden_size)"],
    }
    return case.load(
        EVE2PatchEmbedding,
        config,
        patch_size=case.config["patch_stride"],
        merge_size=case.config["dense_stride"],
        max_size=case.config["max_size"],
    )
