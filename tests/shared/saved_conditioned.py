"""More tiny models as ``saved_models`` has them: those whose layers are modulated.

To write the folders that are missing below FOLDER with the code of another checkout:

    PYTHONPATH=CHECKOUT python -m tests.shared.saved_conditioned FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import torch

from tests.shared.saved_models import Numbers, Saved, noise, write
from tests.shared.saved_wholes import built

ACDIT = {"latent_dim": 3, "dim": 24, "num_layers": 2, "num_heads": 2, "num_classes": 5, "mlp_ratio": 2.0}
VAR = {"num_codes": 10, "code_dim": 4, "num_classes": 5, "dim": 16, "num_layers": 2, "num_heads": 2, "mlp_ratio": 2.0}
SCALES = (1, (2, 1), (4, 2))


def denoised(model: Any, inputs: Numbers) -> Numbers:
    """The noise in blocks."""
    return {"made": model(inputs["clean"], inputs["noised"], torch.tensor([3, 700]), torch.tensor([1, 4]))}


def next_scales(model: Any, inputs: Numbers) -> Numbers:
    """Logits of all scales."""
    return {"logits": model(torch.tensor([1, 5]), inputs["maps"])}


def blocks(count: int, size: int) -> dict[str, torch.Tensor]:
    """Clean blocks and noised ones."""
    return {"clean": noise(2, count, size, 3), "noised": noise(2, count, size, 3, seed=2)}


def maps() -> Numbers:
    """What the second and third scale read."""
    return {"maps": noise(2, 10, 4)}


CONDITIONED: dict[str, Saved] = {
    "acdit": Saved(built("ACDiT", **ACDIT, grid=(1, 4, 6), block_size=4), lambda: blocks(6, 4), denoised),
    "acdit_video": Saved(
        built("ACDiT", **ACDIT, grid=(3, 2, 2), block_size=4, square_blocks=False, axis_shares=(2, 2, 2), qk_norm=False),
        lambda: blocks(3, 4),
        denoised,
    ),
    "var": Saved(built("VAR", **VAR, scales=SCALES), maps, next_scales),
    "var_shared": Saved(built("VAR", **VAR, scales=SCALES, shared_modulation=True, l2_norm=False), maps, next_scales),
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        for name, saved in CONDITIONED.items():
            if not (Path(sys.argv[1]) / name).exists():
                write(Path(sys.argv[1]) / name, saved)
