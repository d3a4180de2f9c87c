"""Every head in a model with every trunk: a training step, a sample, saving and loading."""

import pytest
import torch

from mmblocks import Block, Decoder, LMHead, MultimodalModel, TextEmbedding, text, vectors
from mmblocks.heads import (
    EmbeddingHead,
    MaskedTokenHead,
    MatchingHead,
    MetricFlowHead,
    ModalityLMHead,
    MultiTokenHead,
    OutputMapper,
    Placeholders,
    RegressionHead,
    TiedLMHead,
)
from mmblocks.layers.diffusion.metric_path import MetricPath
from mmblocks.models.omnigen.trunk import Phi3Decoder
from mmblocks.sequence.segments import Text
from mmblocks.trunks import ChameleonTrunk, NEOTrunk, PrunedDecoder, RoutedDecoder
from mmblocks.trunks.routed.modality_lora import ModalityLoRADecoder
from mmblocks.trunks.routed.moe_decoder import MoEDecoder
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
    "several": lambda: MultiTokenHead(dim=DIM, vocab_size=VOCABULARY, num_tokens=2),
}
HEADS = CONTINUOUS | DISCRETE

SIZES = {"dim": DIM, "num_layers": 2, "num_heads": 1, "mlp_dim": 16}
TRUNKS = {
    "routed": lambda: RoutedDecoder(**SIZES),
    "adapted": lambda: ModalityLoRADecoder(**SIZES, rank=2),
    "experts": lambda: MoEDecoder(**SIZES, num_experts=2),
    "chameleon": lambda: ChameleonTrunk(**SIZES),
    "neo": lambda: NEOTrunk(**SIZES | {"head_dim": 16}),
    "phi3": lambda: Phi3Decoder(**SIZES),
    "pruned": lambda: PrunedDecoder(trunk=Decoder(**SIZES), pruning=((1, 0.5),)),
}


class NextTwo(Text):
    """Three ids, of which each place learns the next two."""

    def piece(self, tokenizer, layouts):
        return super().piece(tokenizer, layouts)._replace(values=torch.tensor([[1, 0], [0, 1], [1, 1]]))


def model_with(trunk: Block | None = None, heads: dict[str, Block] | None = None, **inputs: Block) -> MultimodalModel:
    parts = {"text": TextEmbedding(vocab_size=VOCABULARY, dim=DIM), "latents": LinearInput()} | inputs
    return MultimodalModel(inputs=parts, trunk=trunk or Decoder(**SIZES | {"num_layers": 1}), outputs=heads or {})


def samples(name: str, target: str):
    generator = torch.Generator().manual_seed(0)
    grids = [torch.randn(size, 3, generator=generator) for size in (5, 2)]
    if name in CONTINUOUS:
        return [[text([1, 2]), vectors(grid, input="latents", target=target)] for grid in grids]
    asked = text([1, 0, 1], target=target)
    if name == "several":
        asked = NextTwo(**vars(asked))
    return [[vectors(grid, input="latents"), asked] for grid in grids]


def check_samples_and_weights_of_zero(head: Block, states: torch.Tensor, targets: torch.Tensor) -> None:
    sampled = head.sample(states)
    assert len(sampled) == len(states) and (sampled.dtype == torch.long or sampled.isfinite().all())
    head.zero_grad()
    loss = head.loss(states.requires_grad_(), targets, torch.zeros(len(states)))
    loss.sum().backward()
    assert not loss.any() and not states.grad.any()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in head.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_head_in_a_model(name, tmp_path) -> None:
    torch.manual_seed(0)
    head = stirred(HEADS[name]())
    model = model_with(heads={"head": head})
    batch = model.batch_builder()(samples(name, "head"))
    output = model(batch)
    output.losses["head"].backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name

    states = output.hidden.flatten(0, 1)[batch.targets["head"].places].detach()
    check_samples_and_weights_of_zero(head, states, batch.targets["head"].values)

    model.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    torch.testing.assert_close(again.hidden(batch), output.hidden)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", TRUNKS)
def test_all_heads_on_a_trunk(name, tmp_path) -> None:
    torch.manual_seed(0)
    model = model_with(TRUNKS[name](), {each: stirred(build()) for each, build in HEADS.items()}).train()
    batch = model.batch_builder()([sample for each in HEADS for sample in samples(each, each)])
    output = model(batch)
    assert set(output.losses) == set(HEADS)
    sum(output.losses.values()).backward()
    for parameter_name, parameter in model.outputs.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
    assert all(parameter.grad.any() for parameter in model.inputs.parameters())
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.trunk.parameters())
    for each, head in model.outputs.items():
        states = output.hidden.flatten(0, 1)[batch.targets[each].places].detach()
        check_samples_and_weights_of_zero(head, states, batch.targets[each].values)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(Block.from_pretrained(tmp_path).train().hidden(batch), output.hidden)


@pytest.mark.parametrize("mapping", [{"num_tokens": 5, "width": 8, "num_layers": 1, "num_heads": 2}, {"num_tokens": None}])
def test_output_mapper_reads_the_states_of_queries(mapping, tmp_path) -> None:
    torch.manual_seed(0)
    mapper = OutputMapper(dim=DIM, condition_dim=6, **mapping)
    model = model_with(heads={"condition": mapper}, latents=Placeholders(num_tokens=4, dim=DIM))
    batch = model.batch_builder()([[text([1, 2]), vectors(torch.zeros(4, 3), input="latents")] for _ in range(2)])
    states = model.hidden(batch)[:, -4:]  # of the queries, after the text
    wanted = torch.randn(2, mapping["num_tokens"] or 4, 6)
    mapper.loss(states, wanted).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    check_samples_and_weights_of_zero(mapper, states.detach(), wanted)
    model.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    torch.testing.assert_close(again.outputs["condition"].sample(again.hidden(batch)[:, -4:]), mapper.sample(states))


def test_output_mapper_as_a_head_maps_states_one_by_one() -> None:
    torch.manual_seed(0)
    model = model_with(heads={"head": OutputMapper(dim=DIM, condition_dim=3, num_tokens=None)})
    batch = model.batch_builder()(samples("regression", "head"))
    output = model(batch)
    mapped = model.outputs["head"].sample(output.hidden.flatten(0, 1)[batch.targets["head"].places])
    wanted = (mapped - batch.targets["head"].values).square().mean(dim=1)
    torch.testing.assert_close(output.token_losses["head"], wanted)
    output.losses["head"].backward()
    assert model.outputs["head"].output.weight.grad.any()


def test_output_mapper_of_queries_says_why_it_is_no_head() -> None:
    head = OutputMapper(dim=DIM, condition_dim=3, num_tokens=5, width=8, num_layers=1, num_heads=2)
    model = model_with(heads={"head": head})
    with pytest.raises(TypeError, match=r"its 5 queries read all states of an image; accepted: \(B, Q, D\), or num_tokens=None"):
        model(model.batch_builder()(samples("regression", "head")))


@pytest.mark.unchecked
@pytest.mark.parametrize("name", [*HEADS, "mapper"])
def test_targets_and_weights_of_another_shape_are_refused(name) -> None:
    head = OutputMapper(dim=DIM, condition_dim=3, num_tokens=None) if name == "mapper" else HEADS[name]()
    hidden, target = torch.randn(4, DIM), torch.zeros(4, 3) if name in CONTINUOUS else torch.zeros(4, dtype=torch.long)
    if name == "mapper":
        hidden, target = torch.randn(4, 2, DIM), torch.zeros(4, 2, 3)
    if name == "several":
        target = torch.zeros(4, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="target has shape"):
        head.loss(hidden, target[:3])
    with pytest.raises(ValueError, match=r"weight has shape \(3,\); accepted: \(4,\)"):
        head.loss(hidden, target, torch.ones(3))


def test_tied_head_learns_with_its_embedding(tmp_path) -> None:
    embedding = TextEmbedding(vocab_size=VOCABULARY, dim=DIM)
    model = model_with(heads={"head": TiedLMHead(table=embedding)}, text=embedding)
    assert sum(parameter is embedding.weight for parameter in model.parameters()) == 1
    batch = model.batch_builder()(samples("lm", "head"))
    loss = model(batch).losses["head"]
    loss.backward()
    assert embedding.weight.grad[5:].any()  # ids that are not read: their gradient comes from the head
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(Block.from_pretrained(tmp_path)(batch).losses["head"], loss)


def test_placeholders_hide_what_is_to_be_regressed() -> None:
    heads = {"head": RegressionHead(dim=DIM, target_dim=3)}
    model = model_with(heads=heads, latents=Placeholders(num_tokens=2, dim=DIM))
    rows = [[text([1, 2]), vectors(torch.randn(2, 3), input="latents", target="head")] for _ in range(2)]
    hidden = model.hidden(model.batch_builder()(rows))
    torch.testing.assert_close(hidden[0], hidden[1])  # whatever the embeddings are
    with pytest.raises(ValueError, match="3 rows; accepted: multiples of 2"):
        model.inputs["latents"](torch.randn(3, 3))
