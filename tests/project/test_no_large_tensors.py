"""No part holds a number for each pair of a row and a vocabulary's id, or of a feature and a code.

The budgets of the ops, which decide how many rows are worked on at once, are made small; then no tensor may come near to that size.
"""

import pkgutil
from functools import partial
from importlib import import_module
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mmblocks.heads
import mmblocks.tokenizers.bottlenecks
from mmblocks import Block, LMHead, TextEmbedding
from mmblocks.heads import (
    EmbeddingHead,
    MaskedTokenHead,
    MetricFlowHead,
    ModalityLMHead,
    MultiTokenHead,
    ProjectedLMHead,
    TiedLMHead,
)
from mmblocks.layers.diffusion.metric_path import MetricPath
from mmblocks.models import VAR
from mmblocks.ops.linear_cross_entropy import linear_cross_entropy, linear_log_prob
from mmblocks.tokenizers.bottlenecks.clustering_vector_quantizer import ClusteringVectorQuantizer
from mmblocks.tokenizers.bottlenecks.dual import DualBottleneck
from mmblocks.tokenizers.bottlenecks.ema import EMAVectorQuantizer
from mmblocks.tokenizers.bottlenecks.finite_scalar import FiniteScalarQuantizer
from mmblocks.tokenizers.bottlenecks.index_backpropagation import IndexBackpropagation
from mmblocks.tokenizers.bottlenecks.lookup_free import LookupFreeQuantizer
from mmblocks.tokenizers.bottlenecks.multi_codebook import MultiCodebook
from mmblocks.tokenizers.bottlenecks.multi_head import MultiHeadVectorQuantizer
from mmblocks.tokenizers.bottlenecks.multi_scale import MultiScaleQuantizer
from mmblocks.tokenizers.bottlenecks.residual import quantizer as residual
from mmblocks.tokenizers.bottlenecks.residual.finite_scalar import ResidualFiniteScalarQuantizer
from mmblocks.tokenizers.bottlenecks.residual.lookup_free import ResidualLookupFreeQuantizer
from mmblocks.tokenizers.bottlenecks.residual.quantizer import ResidualQuantizer
from mmblocks.tokenizers.bottlenecks.residual.rq import JointRQBottleneck, RQBottleneck
from mmblocks.tokenizers.bottlenecks.sim_vq import SimVQ
from mmblocks.tokenizers.bottlenecks.text_aligned import TextAlignedQuantizer
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer
from mmblocks.training.contrastive import clip_loss
from mmblocks.training.siglip import siglip_loss

SIDE, DIM, MANY = 20, 8, 640
ROWS = SIDE * SIDE
LIMIT = ROWS * MANY // 4
CODES = {"num_codes": MANY, "dim": DIM}


class LargestTensor(TorchDispatchMode):
    """How many numbers the largest memory holds that any operation, forward or backward, gives back."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for made in tree_leaves(found):
            if isinstance(made, Tensor):
                self.numbers = max(self.numbers, made.untyped_storage().nbytes() // made.element_size())
        return found


@pytest.fixture(autouse=True)
def small_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(import_module("mmblocks.ops.chunked_linear"), "CPU_CHUNK_BYTES", 4 * 16 * MANY)
    monkeypatch.setattr(import_module("mmblocks.ops.nearest_code.reference"), "CPU_TILE", (16, 128))
    monkeypatch.setattr(residual, "PIECE", 16)
    for name in ("contrastive", "siglip"):
        monkeypatch.setattr(import_module(f"mmblocks.training.{name}"), "_CHUNK_BYTES", 4 * 16 * MANY)


HEADS = {
    LMHead: lambda: LMHead(dim=DIM, vocab_size=MANY),
    ProjectedLMHead: lambda: ProjectedLMHead(dim=DIM, vocab_size=MANY),
    TiedLMHead: lambda: TiedLMHead(table=TextEmbedding(vocab_size=MANY, dim=DIM)),
    ModalityLMHead: lambda: ModalityLMHead(dim=DIM, vocab_size=MANY),
    MaskedTokenHead: lambda: MaskedTokenHead(dim=DIM, vocab_size=MANY),
    MetricFlowHead: lambda: MetricFlowHead(dim=DIM, path=MetricPath(num_codes=MANY, code_dim=4)),
}

MULTI = {"dim": DIM, "num_codes": MANY}
BOTTLENECKS = {
    VectorQuantizer: lambda: VectorQuantizer(**CODES),
    ClusteringVectorQuantizer: lambda: ClusteringVectorQuantizer(**CODES),
    EMAVectorQuantizer: lambda: EMAVectorQuantizer(**CODES, dead_below=1.0),
    IndexBackpropagation: lambda: IndexBackpropagation(**CODES),
    SimVQ: lambda: SimVQ(**CODES),
    RQBottleneck: lambda: RQBottleneck(**CODES, depth=2),
    JointRQBottleneck: lambda: JointRQBottleneck(**CODES, depth=2, shared=True),
    MultiCodebook: lambda: MultiCodebook(num_codebooks=2, num_codes=MANY, code_dim=DIM // 2),
    MultiScaleQuantizer: lambda: MultiScaleQuantizer(**CODES, scales=(1, 5, SIDE)),
    MultiHeadVectorQuantizer: lambda: MultiHeadVectorQuantizer(**MULTI, num_heads=2),
    ResidualQuantizer: lambda: ResidualQuantizer(**MULTI, num_quantizers=2),
    TextAlignedQuantizer: lambda: TextAlignedQuantizer(num_codes=MANY, code_dim=DIM, in_dim=DIM, out_dim=DIM),
    LookupFreeQuantizer: lambda: LookupFreeQuantizer(bits=(10,), dim=DIM),
    ResidualFiniteScalarQuantizer: lambda: ResidualFiniteScalarQuantizer(levels=(8, 8, 10), num_quantizers=2, dim=DIM),
    ResidualLookupFreeQuantizer: lambda: ResidualLookupFreeQuantizer(bits=10, num_quantizers=2, dim=DIM),
    FiniteScalarQuantizer: lambda: FiniteScalarQuantizer(levels=(8, 8, 10), dim=DIM),
    DualBottleneck: lambda: DualBottleneck(
        pixel=RQBottleneck(num_codes=MANY, dim=DIM // 2, depth=1), semantic=RQBottleneck(num_codes=MANY, dim=DIM // 2, depth=1)
    ),
}

SOFT = {
    IndexBackpropagation: "gradients flow to all codes through the softmax: that is the method",
    MultiHeadVectorQuantizer: "trained by vector-quantize-pytorch",
    ResidualQuantizer: "trained by vector-quantize-pytorch",
    TextAlignedQuantizer: "draws codes at random, with noise for each",
}


def defined_in(package: Any) -> set[type]:
    """All parts that a folder defines."""
    modules = [import_module(module.name) for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    found = (value for module in modules for value in vars(module).values() if isinstance(value, type))
    return {part for part in found if issubclass(part, Block) and part.__module__.startswith(package.__name__)}


def test_every_head_with_a_vocabulary_and_every_bottleneck_with_codes_is_here() -> None:
    assert {head for head in defined_in(mmblocks.heads) if issubclass(head, LMHead)} == set(HEADS)
    without_codes = {"AffineBottleneck", "AveragingCodebook", "Codebook", "DiagonalGaussian", "ResidualScales", "ScaledLatents"}
    names = {part.__name__ for part in defined_in(mmblocks.tokenizers.bottlenecks)}
    assert names == {part.__name__ for part in BOTTLENECKS} | without_codes


@pytest.mark.parametrize("head", HEADS)
def test_a_heads_loss_never_holds_its_logits(head: type) -> None:
    part = HEADS[head]()
    hidden = torch.randn(ROWS, DIM, requires_grad=True)
    with LargestTensor() as largest:
        part.loss(hidden, torch.randint(MANY, (ROWS,)), torch.rand(ROWS)).sum().backward()
    assert hidden.grad is not None and MANY * DIM <= largest.numbers < LIMIT


def test_several_ids_of_one_state_never_hold_their_logits() -> None:
    with LargestTensor() as largest:
        head = MultiTokenHead(dim=DIM, vocab_size=MANY, num_tokens=2)
        head.loss(torch.randn(ROWS, DIM), torch.randint(MANY, (ROWS, 2))).sum().backward()
    assert largest.numbers < LIMIT


def test_the_loss_of_all_scales_never_holds_their_logits() -> None:
    more = 4 * MANY  # than tokens, whose attention holds a number for each two
    sizes = {"num_codes": more, "code_dim": 4, "num_classes": 3, "dim": DIM, "num_layers": 1, "num_heads": 2}
    trunk = VAR(**sizes, scales=(1, SIDE))
    with LargestTensor() as largest:
        losses = trunk.loss(torch.tensor([1]), torch.randn(1, ROWS, 4), torch.randint(more, (1, ROWS + 1)))
        losses.mean().backward()
    assert largest.numbers < ROWS * more // 4


@pytest.mark.parametrize("weighted", [False, True])
def test_embeddings_never_hold_all_similarities(weighted: bool) -> None:
    head = EmbeddingHead(dim=DIM, embed_dim=4)
    with LargestTensor() as largest:
        head.loss(torch.randn(MANY, DIM), torch.randn(MANY, 4), torch.rand(MANY).round() if weighted else None).mean().backward()
    assert largest.numbers < MANY * MANY // 4


@pytest.mark.parametrize("part", BOTTLENECKS)
@pytest.mark.parametrize("training", [False, True])
def test_a_bottleneck_never_holds_all_distances(part: type, training: bool) -> None:
    if training and part in SOFT:
        pytest.skip(SOFT[part])
    bottleneck = BOTTLENECKS[part]().train(training)
    features = torch.randn(1, SIDE, SIDE, DIM, requires_grad=True)
    assert prod(bottleneck.codebook_sizes) >= MANY
    with LargestTensor() as largest, torch.set_grad_enabled(training):
        latents = bottleneck(features)
        if training:
            (latents.z.sum() + sum((latents.loss or {}).values())).backward()
    assert latents.ids is not None and largest.numbers < LIMIT


@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
def test_contrastive_losses_never_hold_all_similarities(loss: Any) -> None:
    image, text = (torch.randn(MANY, DIM, requires_grad=True) for _ in range(2))
    scalars = [torch.tensor(1.0, requires_grad=True) for _ in range(1 if loss is clip_loss else 2)]
    with LargestTensor() as largest:
        found = loss(image, text, *scalars)
        (found.loss if loss is clip_loss else found).backward()
    assert largest.numbers < MANY * MANY // 4


@pytest.mark.parametrize(
    ("function", "rows"),
    [(linear_cross_entropy, 16), (linear_log_prob, 16), (partial(linear_cross_entropy, scale=0.5, softcap=3.0), 8)],
)
def test_the_op_holds_no_more_than_its_budget(function: Any, rows: int) -> None:
    """With a cap that is half as many rows: their logits, and the cap's slopes."""
    hidden, weight = torch.randn(ROWS, DIM), torch.randn(MANY, DIM)
    with LargestTensor() as largest:
        function(hidden, weight, torch.randint(MANY, (ROWS,)))
    assert largest.numbers <= rows * MANY


def test_the_measure_sees_logits_that_are_written_out() -> None:
    with LargestTensor() as largest:
        torch.nn.functional.cross_entropy(torch.randn(ROWS, DIM) @ torch.randn(DIM, MANY), torch.randint(MANY, (ROWS,)))
    assert largest.numbers >= ROWS * MANY
