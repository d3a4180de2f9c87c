"""InternVL's pixel shuffle, in both versions."""

from mmblocks.connectors.pixel_shuffle import PixelShuffle
from tests.parity.cases import Case


def run(case: Case) -> None:
    for name in case.named("out."):
        shuffle = PixelShuffle(factor=round(1 / case.config["scale_factor"]), version=name[-2:])
        features = case.io["in.x"]
        shuffled = shuffle(features)
        assert shuffled.shape[1:3] == shuffle.out_grid(features.shape[1:3])
        case.check(f"out.{name}", shuffled)
