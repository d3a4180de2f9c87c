"""torch.compile(fullgraph=True): forward, a training step, bfloat16."""

from dataclasses import replace

import pytest
import torch

from mmblocks import Decoder, TokenTable, codes, image, text
from mmblocks.sequence import Conditions
from mmblocks.sequence.masks import lower
from mmblocks.trunks import AdaLN, llama_layer
from tests.shared.tiny import FORMAT, TOKENIZER, tiny_model

pytestmark = pytest.mark.unchecked
BACKEND = "aot_eager"  # traces all that inductor would, without compiling C++


@pytest.fixture(autouse=True)
def fresh_graphs():
    torch.compiler.reset()


def mixed_batch(model):
    return model.batch_builder(TOKENIZER)(
        [
            [text("what? "), image(torch.rand(3, 4, 8), bidirectional=True), text(" a 7", target="lm")],
            [text("draw"), codes(torch.randint(12, (2, 3)), FORMAT, target="lm")],
        ]
    )


@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_trunks_forward_is_one_graph(lowered: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    trunk = Decoder(dim=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=48, qk_norm=True).to(dtype)
    table = TokenTable.text(2, 10)
    table.order[0, 3:6] = 3
    mask = lower(table) if lowered else None
    embeds = torch.randn(2, 10, 32, dtype=dtype)
    compiled = torch.compile(trunk, fullgraph=True, backend=BACKEND)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 5e-2, "rtol": 5e-2}
    torch.testing.assert_close(compiled(embeds, table, mask=mask), trunk(embeds, table), **tolerance)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("per_row", [False, True])
def test_a_modulated_trunks_forward_is_one_graph(shared: bool, per_row: bool) -> None:
    torch.manual_seed(0)
    usual = llama_layer(num_heads=4, mlp_dim=48)
    trunk = Decoder(dim=32, num_layers=2, layers=replace(usual, modulation=AdaLN(condition_dim=6, shared=shared)))
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    embeds, table = torch.randn(2, 4, 32), TokenTable.text(2, 4)
    of = torch.tensor([[2], [-1]]) if per_row else torch.tensor([[-1, 0, 0, 2], [1, 1, -1, -1]])
    conditions = Conditions(torch.randn(3, 6), of)
    compiled = torch.compile(trunk, fullgraph=True, backend=BACKEND)
    wanted = trunk(embeds, table, conditions=conditions)
    torch.testing.assert_close(compiled(embeds, table, conditions=conditions), wanted, atol=1e-5, rtol=1e-5)


def test_the_trunk_compiles_to_machine_code() -> None:
    torch.manual_seed(0)
    trunk = Decoder(dim=32, num_layers=1, num_heads=2, mlp_dim=48)
    embeds, table = torch.randn(2, 6, 32), TokenTable.text(2, 6)
    compiled = torch.compile(trunk, fullgraph=True)
    torch.testing.assert_close(compiled(embeds, table, mask=lower(table)), trunk(embeds, table), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_training_step_is_one_graph(dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    batch = mixed_batch(model)

    def loss_of(batch):
        return model(batch).losses["lm"]

    gradients = []
    for function in (loss_of, torch.compile(loss_of, fullgraph=True, backend=BACKEND)):
        model.zero_grad()
        function(batch).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    tolerance = {"atol": 1e-6, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 5e-2}
    for name, plain in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], plain, **tolerance, msg=lambda m, n=name: f"{n}: {m}")
