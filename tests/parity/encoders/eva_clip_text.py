"""EVA-CLIP's text tower."""

from mmblocks.encoders.eva_clip_text import EVACLIPText
from tests.parity.cases import Case
from tests.parity.encoders.eva_clip_vision import EVA, EVA02, of_the_model

MANIFESTS = {name: [(EVACLIPText, "eva-clip")] for name in (*EVA, *EVA02)}


def run(case: Case) -> None:
    text = case.load(EVACLIPText, of_the_model(case))
    ids = case.io["in.input_ids"]
    results = {"features": text(ids), "tokens": text.tokens(ids)}
    for name in case.named("out."):
        case.check(f"out.{name}", results[name])
