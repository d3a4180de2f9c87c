"""UniTok's way through its codebooks, with the attention that narrows and widens tokens around it."""

from torch import Tensor

from mmblocks.tokenizers.bottlenecks.multi_codebook import MultiCodebook
from mmblocks.tokenizers.towers.attention_projection import AttentionProjection
from tests.parity.cases import Case, ramp_mean


def run(case: Case) -> None:
    narrow = case.load(AttentionProjection, layout="unitok-in").train()
    bottleneck = case.load(MultiCodebook, layout="unitok").train()
    widen = case.load(AttentionProjection, layout="unitok-out").train()

    features = case.io["in.features"].requires_grad_()
    projected = narrow(features)
    latents = bottleneck(projected)
    out = widen(latents.z)
    case.check("out.proj", projected)
    case.check("out.quant", latents.z)
    case.check("out.indices", latents.ids.movedim(-1, 1))  # official ids have the codebooks in front
    case.check("out.from_ids", bottleneck.lookup(latents.ids))
    case.check("out", out)

    total = ramp_mean(out) + check_losses(case, latents.loss)
    if "loss.total" in case.io:
        case.check("loss.total", total)
    if case.named("grad."):
        total.backward()
        check_gradients(case, narrow, bottleneck, widen, features)


def check_losses(case: Case, losses: dict[str, Tensor]) -> Tensor:
    """What the case adds to its total."""
    vq = losses["codebook"] + case.config["beta"] * losses["commitment"]
    case.check("loss.vq", vq)
    if not case.config["use_entropy_loss"]:
        return vq
    entropy = losses["sample_entropy"] - losses["codebook_entropy"]
    if "loss.entropy" in case.io:
        case.check("loss.entropy", entropy)
    return vq + 0.1 * entropy


def check_gradients(case: Case, narrow, bottleneck, widen, features: Tensor) -> None:
    gradients = {"features": features.grad}
    for block, name in ((narrow, "unitok-in"), (bottleneck, "unitok"), (widen, "unitok-out")):
        (layout,) = (known for known in block.layouts if known.name == name)
        ours = {key: parameter.grad for key, parameter in block.named_parameters()}
        gradients |= dict(layout.convert(ours, block.config, to="theirs"))
    for name in case.named("grad."):
        case.check(f"grad.{name}", gradients[name])
