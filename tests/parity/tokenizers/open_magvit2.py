"""Open-MAGVIT2's tokenizers for images and clips."""

from mmblocks.tokenizers.open_magvit2.tokenizer import OpenMAGVIT2
from mmblocks.tokenizers.open_magvit2.video import OpenMAGVIT2Video
from tests.parity.cases import Case, ramp_mean

MANIFESTS = {
    "open_magvit2_imagenet_256": [(OpenMAGVIT2, "open_magvit2")],
    "open_magvit2_ucf101_128_video": [(OpenMAGVIT2Video, "open_magvit2_video")],
}


def run(case: Case) -> None:
    pixels = case.io["in.x"].requires_grad_()
    tokenizer = case.load(OpenMAGVIT2Video if pixels.ndim == 5 else OpenMAGVIT2)
    tokenizer.train(case.is_training or "train" in case.description["notes"].split(".")[0])
    features = tokenizer.encoder(pixels)
    latents = tokenizer.bottleneck(features)
    decoded = tokenizer.decoder(latents.z)
    case.check("out.h", features.movedim(-1, 1))
    case.check("out.quant", latents.z.movedim(-1, 1))
    if "out.indices" in case.io:
        case.check("out.indices", latents.ids.flatten())
    for number, name in enumerate(("pre", "post")):
        if f"out.indices_{name}" in case.io:
            case.check(f"out.indices_{name}", latents.ids[..., number].flatten())
    case.check("out.dec", decoded)
    if "out.dec_from_ids" in case.io:
        case.check("out.dec_from_ids", tokenizer.decoder(tokenizer.lookup(latents.ids)))
    total = ramp_mean(decoded)
    if latents.loss:
        sample, codebook, commitment = (latents.loss[name] for name in ("sample_entropy", "codebook_entropy", "commitment"))
        config = case.config
        entropy = config.get("sample_minimization_weight", 1.0) * sample - config.get("batch_maximization_weight", 1.0) * codebook
        total = total + 0.1 * entropy + 0.25 * commitment
        found = {"loss.entropy_aux": entropy, "loss.commit": commitment, "loss.commitment": commitment}
        for name in found.keys() & case.io.keys():
            case.check(name, found[name])
    if case.named("grad."):
        if "loss.total" in case.io:
            case.check("loss.total", total)
        total.backward()
        case.check_gradients(tokenizer, tokenizer.layouts[0].name, x=pixels)
