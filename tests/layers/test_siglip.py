import pytest
import torch

from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.layers.towers.siglip import SiglipVision, siglip_rules, siglip_sizes


def test_equals_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    theirs = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**sizes, image_size=30, patch_size=14)).eval()
    ours = SiglipVision(image_size=30, patch_size=14, dim=24, num_layers=2, num_heads=2, mlp_dim=32)
    table = Layout("siglip", siglip_rules("", ""))
    # Some versions of transformers put "vision_model." in front.
    state = {name.removeprefix("vision_model."): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(dict(table.convert(state, {})))
    pixels = torch.randn(2, 3, 30, 30)
    with torch.no_grad():
        patches, pooled = ours(pixels)
        wanted = theirs(pixels)
    torch.testing.assert_close(patches, wanted.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooled, wanted.pooler_output, atol=1e-5, rtol=1e-5)


def test_sizes_of_published_models() -> None:
    assert siglip_sizes("google/siglip2-so400m-patch14-384") == {
        "image_size": 384, "patch_size": 14, "dim": 1152, "num_layers": 27, "num_heads": 16, "mlp_dim": 4304,
    }  # fmt: skip
    with pytest.raises(ValueError, match="siglip2-so400m-patch16-naflex"):
        siglip_sizes("google/siglip2-so400m-patch16-naflex")
