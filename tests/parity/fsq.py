"""vector-quantize-pytorch's FSQ."""

from mmblocks.tokenizers.bottlenecks.finite_scalar import FiniteScalarQuantizer
from tests.parity.cases import Case, ramp_mean
from tests.parity.vq import LAYOUT, channels_last, check_outputs


def run(case: Case) -> None:
    layout = FiniteScalarQuantizer.layouts[0]
    has_weights = (case.folder / "weights.safetensors").is_file() and case.weights
    bottleneck = case.load(FiniteScalarQuantizer) if has_weights else FiniteScalarQuantizer(**layout.arguments(case.config))
    last = channels_last(case)
    latents = check_outputs(case, bottleneck, last)
    if "loss.total" in case.io:
        total = ramp_mean(latents.z if last else latents.z.movedim(-1, 1))
        case.check("loss.total", total)
        total.backward()
    case.check_gradients(bottleneck, LAYOUT, x=case.io["in.x"])
