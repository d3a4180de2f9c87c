"""What holds for all connectors: they name the grid they give, train, run in bfloat16, and are saved and loaded."""

import pytest
import torch

from mmblocks import Block
from mmblocks.connectors.average_pool import AdaptivePool, AveragePool
from mmblocks.connectors.causal_former import CausalFormer
from mmblocks.connectors.chain import ConnectorChain
from mmblocks.connectors.emu2 import Emu2DownProjection, Emu2UpProjection
from mmblocks.connectors.mlp import MLPProjector
from mmblocks.connectors.perceiver import PerceiverResampler
from mmblocks.connectors.pixel_shuffle import PixelShuffle
from mmblocks.connectors.qformer import QFormerConnector
from mmblocks.connectors.spatio_temporal_pool import SpatioTemporalPool
from mmblocks.connectors.token_flex import TokenFlexProjector
from mmblocks.roles import Connector

STACK = {"num_layers": 2, "num_heads": 2, "mlp_dim": 10}
CASES = {
    "mlp": (lambda: MLPProjector(in_dim=6, dim=8), (3, 5), (3, 5, 8)),
    "mlp of three": (lambda: MLPProjector(in_dim=6, dim=8, hidden_dim=4, num_layers=3, norm=True, bias=False), (7,), (7, 8)),
    "linear": (lambda: MLPProjector(in_dim=6, dim=8, num_layers=1), (2, 3, 5), (2, 3, 5, 8)),
    "average": (lambda: AveragePool(num_tokens=4), (7, 9), (2, 3, 6)),
    "adaptive": (lambda: AdaptivePool(size=(2, 3)), (7, 4), (2, 3, 6)),
    "adaptive video": (lambda: AdaptivePool(size=(2, 1, 3)), (3, 7, 4), (2, 1, 3, 6)),
    "spatio-temporal": (lambda: SpatioTemporalPool(), (3, 2, 5), (13, 6)),
    "shuffle v1": (lambda: PixelShuffle(factor=3, version="v1"), (3, 6), (2, 1, 54)),
    "shuffle v2": (lambda: PixelShuffle(factor=3), (3, 6), (1, 2, 54)),
    "chain": (lambda: ConnectorChain(parts=[PixelShuffle(), MLPProjector(in_dim=24, dim=8, norm=True)]), (2, 6), (1, 3, 8)),
    "emu2 up": (lambda: Emu2UpProjection(image_dim=6, dim=8, num_tokens=4), (5, 4), (2, 2, 8)),
    "emu2 up of latents": (lambda: Emu2UpProjection(image_dim=6, dim=8, num_tokens=None), (5,), (5, 8)),
    "emu2 down": (lambda: Emu2DownProjection(image_dim=8, dim=6), (5,), (5, 8)),
    "causal former": (
        lambda: CausalFormer(in_dim=6, dim=8, num_queries=5, hidden_dim=12, head_dim=4, input_norm=True, **STACK),
        (2, 3),
        (5, 8),
    ),
    "q-former": (lambda: QFormerConnector(dim=8, in_dim=6, num_queries=5, hidden_dim=12, **STACK), (7,), (5, 8)),
    "causal q-former": (
        lambda: QFormerConnector(dim=None, in_dim=6, num_queries=5, hidden_dim=8, causal=True, input_norm_eps=None, **STACK),
        (2, 3),
        (5, 8),
    ),
    "perceiver": (lambda: PerceiverResampler(dim=6, num_latents=5, head_dim=4, qk_norm=True, **STACK), (2, 3), (5, 6)),
    "perceiver of videos": (
        lambda: PerceiverResampler(dim=6, num_latents=5, head_dim=4, max_frames=3, activation="relu", **STACK),
        (3, 2, 1),
        (5, 6),
    ),
    "token flex": (lambda: TokenFlexProjector(in_dim=6, dim=8, num_tokens=9), (7, 4), (3, 3, 8)),
}
pytestmark = pytest.mark.parametrize(("make", "grid", "shape"), CASES.values(), ids=CASES)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_grid_is_the_one_it_names(make, grid, shape, batch) -> None:
    connector = make()
    assert isinstance(connector, Connector)
    assert connector(torch.randn(batch, *grid, 6)).shape == (batch, *shape)
    assert connector.out_grid(grid) == shape[:-1]


def test_gradients_reach_everything(make, grid, shape) -> None:
    connector = make()
    features = torch.randn(2, *grid, 6, requires_grad=True)
    given = connector(features)
    (given * torch.linspace(-1, 1, given.numel()).view_as(given)).sum().backward()
    assert features.grad is not None
    for name, parameter in connector.named_parameters():
        assert parameter.grad is not None, name


def test_it_runs_in_bfloat16(make, grid, shape) -> None:
    torch.manual_seed(0)
    connector, features = make(), torch.randn(2, *grid, 6)
    given = connector.bfloat16()(features.bfloat16())
    assert given.dtype == torch.bfloat16 and given.isfinite().all()


def test_it_is_saved_and_loaded(make, grid, shape, tmp_path) -> None:
    connector, features = make().eval(), torch.randn(2, *grid, 6)
    connector.save_pretrained(tmp_path / "connector")
    assert torch.equal(Block.from_pretrained(tmp_path / "connector")(features), connector(features))


@pytest.mark.unchecked
def test_other_features_are_refused(make, grid, shape) -> None:
    connector = make()
    if any(True for _ in connector.parameters()):
        with pytest.raises(ValueError, match=r"are (7|28) wide"):
            connector(torch.randn(2, *grid, 7))
    else:
        with pytest.raises(ValueError, match=r"features have shape \(2, 6\); accepted: \(B, .*, D\)"):
            connector(torch.randn(2, 6))
