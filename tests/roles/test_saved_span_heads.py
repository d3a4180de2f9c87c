"""Models whose heads write whole spans are saved and loaded like others."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from mmblocks import Block, Decoder, LMHead, MultimodalModel, TextEmbedding, codes, text, vectors
from mmblocks.heads import (
    MARDiffusionHead,
    MaskedCodesHead,
    MaskedVectorsHead,
    NextScaleHead,
    PlaceholderHead,
    RegressionHead,
    SpanDenoisingHead,
)
from mmblocks.layers.diffusion.noise_paths import DiffusionPath
from mmblocks.tokenizers.bottlenecks.multi_scale import MultiScaleQuantizer


class Latents(Block):
    """A linear map of latents of 4 channels."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(4, dim)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Latents to tokens."""
        return self.map(values)


HEADS: dict[str, Callable[[], nn.Module]] = {
    "denoising": lambda: SpanDenoisingHead(
        dim=16, channels=4, path=DiffusionPath(), time="token", output="modulated", num_classes=3
    ),
    "masked codes": lambda: MaskedCodesHead(head=LMHead(dim=16, vocab_size=9), mask_id=9),
    "masked vectors": lambda: MaskedVectorsHead(
        head=MARDiffusionHead(dim=16, token_dim=4, width=8, num_blocks=1, steps=2), dim=16, num_steps=2
    ),
    "placeholders": lambda: PlaceholderHead(head=RegressionHead(dim=16, target_dim=4), num_tokens=6, dim=16),
    "next scale": lambda: NextScaleHead(dim=16, quantizer=MultiScaleQuantizer(dim=4, num_codes=9, scales=(1, (1, 2), (1, 3)))),
}


@pytest.mark.parametrize("way", HEADS)
def test_a_saved_model_has_the_same_losses(way: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MultimodalModel(
        inputs={
            "text": TextEmbedding(vocab_size=16, dim=16),
            "codes": TextEmbedding(vocab_size=10, dim=16),
            "latents": Latents(dim=16),
        },
        trunk=Decoder(dim=16, num_layers=1, num_heads=2, mlp_dim=32),
        outputs={"text": LMHead(dim=16, vocab_size=16), "image": HEADS[way]()},
    ).eval()
    model.save_pretrained(tmp_path / "model")
    again = MultimodalModel.from_pretrained(tmp_path / "model").eval()
    assert again.outputs["image"].span == model.outputs["image"].span
    if way in ("masked codes", "next scale"):
        picture = codes(torch.randint(9, (6,) if way == "next scale" else (2, 3)), input="codes", target="image")
    else:
        picture = vectors(torch.randn(2, 3, 4), input="latents", target="image")
    batch = model.batch_builder()([[text([1]), picture, text([2], target="text")]])
    losses = [part(batch, generator=torch.Generator().manual_seed(0)).losses for part in (model, again)]
    assert losses[0].keys() == losses[1].keys()
    for name, loss in losses[0].items():
        torch.testing.assert_close(loss, losses[1][name])
