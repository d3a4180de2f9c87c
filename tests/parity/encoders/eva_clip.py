"""EVA-CLIP as a whole: similarities, the contrastive loss, and the gradients of all parameters."""

from torch.nn.functional import normalize

from mmblocks.encoders.eva_clip import EVACLIP
from mmblocks.training.contrastive import clip_loss
from tests.parity.cases import Case
from tests.parity.encoders.eva_clip_vision import EVA, EVA02, of_the_model

MANIFESTS = {name: [(EVACLIP, layout)] for layout, names in (("eva-clip", EVA), ("eva02-clip", EVA02)) for name in names}


def run(case: Case) -> None:
    clip = case.load(EVACLIP, of_the_model(case))
    # The images are normalised already, so that they go to the tower.
    pixels = case.io["in.image"].requires_grad_()
    image = normalize(clip.vision.pool(clip.vision.tower(pixels)), dim=-1)
    text = clip.encode_text(case.io["in.input_ids"])
    image.retain_grad()
    text.retain_grad()
    loss, image_to_text, text_to_image = clip_loss(image, text, clip.scale, label_smoothing=case.config.get("smoothing", 0.0))
    results = {
        "out.image_features": image,
        "out.text_features": text,
        "out.logit_scale": clip.scale,
        "out.logits_per_image": clip.similarity(image, text),
        "out.logits_per_text": clip.similarity(image, text).T,
        "out.acc_i2t": image_to_text,
        "out.acc_t2i": text_to_image,
        "loss.total": loss,
    }
    for name in case.io:
        if name.startswith(("out.", "loss.")):
            case.check(name, results[name])
    loss.backward()
    inputs = {"@image_features": image, "@text_features": text, "@image": pixels, "image": pixels}
    case.check_gradients(clip, **inputs)
