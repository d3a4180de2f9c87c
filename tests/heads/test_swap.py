"""Every head in a model with a decoder: a training step, a sample, saving and loading."""

import pytest
import torch

from mmblocks import (
    Block,
    Decoder,
    EmbeddingHead,
    LMHead,
    MaskedTokenHead,
    MatchingHead,
    MetricFlowHead,
    ModalityLMHead,
    MultimodalModel,
    Placeholders,
    RegressionHead,
    TextEmbedding,
    TiedLMHead,
    text,
    vectors,
)
from mmblocks.layers.metric_path import MetricPath
from tests.heads.test_denoising import flow, mar, nova, orthus, stirred

DIM, VOCABULARY = 10, 13


class LinearInput(Block):
    """Vectors of width 3 to the trunk's."""

    def __init__(self) -> None:
        super().__init__()
        self.map = torch.nn.Linear(3, DIM)

    def forward(self, values):
        return self.map(values)


CONTINUOUS = {
    "mar": mar,
    "orthus": orthus,
    "nova": nova,
    "flow": flow,
    "regression": lambda: RegressionHead(dim=DIM, target_dim=3),
    "cosine": lambda: RegressionHead(dim=DIM, target_dim=3, distance="cosine", bias=True),
    "embedding": lambda: EmbeddingHead(dim=DIM, embed_dim=3),
}
DISCRETE = {
    "lm": lambda: LMHead(dim=DIM, vocab_size=VOCABULARY),
    "modality": lambda: ModalityLMHead(dim=DIM, vocab_size=VOCABULARY),
    "masked": lambda: MaskedTokenHead(dim=DIM, vocab_size=VOCABULARY),
    "metric": lambda: MetricFlowHead(dim=DIM, path=MetricPath(num_codes=VOCABULARY, code_dim=2)),
    "matching": lambda: MatchingHead(dim=DIM),
}


def model_with(head: Block, **inputs: Block) -> MultimodalModel:
    parts = {"text": TextEmbedding(vocab_size=VOCABULARY, dim=DIM), "latents": LinearInput()} | inputs
    trunk = Decoder(dim=DIM, num_layers=1, num_heads=1, mlp_dim=16)
    return MultimodalModel(inputs=parts, trunk=trunk, outputs={"head": head})


def samples(continuous: bool):
    generator = torch.Generator().manual_seed(0)
    grids = [torch.randn(size, 3, generator=generator) for size in (5, 2)]
    if continuous:
        return [[text([1, 2]), vectors(grid, input="latents", target="head")] for grid in grids]
    return [[vectors(grid, input="latents"), text([1, 0, 1], target="head")] for grid in grids]


@pytest.mark.parametrize("name", [*CONTINUOUS, *DISCRETE])
def test_head_in_a_model(name, tmp_path) -> None:
    torch.manual_seed(0)
    head = stirred((CONTINUOUS | DISCRETE)[name]())
    model = model_with(head)
    batch = model.batch_builder()(samples(name in CONTINUOUS))
    output = model(batch)
    output.losses["head"].backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name

    states = output.hidden.flatten(0, 1)[batch.targets["head"].places].detach()
    sampled = head.sample(states)
    assert len(sampled) == len(states) and (sampled.dtype == torch.long or sampled.isfinite().all())
    assert head.loss(states, batch.targets["head"].values, torch.zeros(len(states))).sum() == 0

    model.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    torch.testing.assert_close(again.hidden(batch), output.hidden)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


def test_tied_head_learns_with_its_embedding(tmp_path) -> None:
    embedding = TextEmbedding(vocab_size=VOCABULARY, dim=DIM)
    model = model_with(TiedLMHead(table=embedding), text=embedding)
    assert sum(parameter is embedding.weight for parameter in model.parameters()) == 1
    batch = model.batch_builder()(samples(False))
    loss = model(batch).losses["head"]
    loss.backward()
    assert embedding.weight.grad[5:].any()  # ids that are not read: their gradient comes from the head
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(Block.from_pretrained(tmp_path)(batch).losses["head"], loss)


def test_placeholders_hide_what_is_to_be_regressed() -> None:
    model = model_with(RegressionHead(dim=DIM, target_dim=3), latents=Placeholders(num_tokens=2, dim=DIM))
    rows = [[text([1, 2]), vectors(torch.randn(2, 3), input="latents", target="head")] for _ in range(2)]
    hidden = model.hidden(model.batch_builder()(rows))
    torch.testing.assert_close(hidden[0], hidden[1])  # whatever the embeddings are
    with pytest.raises(ValueError, match="3 rows; accepted: multiples of 2"):
        model.inputs["latents"](torch.randn(3, 3))
