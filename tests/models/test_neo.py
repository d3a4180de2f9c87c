"""NEO as a model: batches of text and images, the published loss weights, generation, saving."""

import pytest
import torch

from mmblocks import Generation, TextGrammar, image, text
from mmblocks.models import NEO
from mmblocks.models.neo import loss_weights

BEGIN, END = 3, 4


def neo(**options) -> NEO:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 40}
    return NEO(**sizes, vision={"hidden_dim": 16, "patch_size": 2}, **options)


def sample(rows: int, columns: int):
    pixels = torch.rand(3, 4 * rows, 4 * columns)
    answer = text([7, 8, 9], target="text")
    return [text([5, BEGIN]), image(pixels, bidirectional=True), text([END, 6]), answer]


def test_a_batch_equals_its_samples_one_by_one() -> None:
    model, samples = neo().eval(), [sample(2, 3), sample(1, 1), [text([1, 2, 3], target="text")]]
    build = model.batch_builder()
    together, packed = model(build(samples)), model(build(samples, pack=40))
    apart = torch.cat([model(build([one])).token_losses["text"] for one in samples])
    torch.testing.assert_close(together.token_losses["text"], apart, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed.token_losses["text"], apart, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_trains_and_saves(tmp_path, tied: bool) -> None:
    model = neo(tie_embeddings=tied, num_prebuffer_layers=1)
    batch = model.batch_builder()([sample(2, 3)])
    model.train()(batch).losses["text"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval().save_pretrained(tmp_path)
    again = NEO.from_pretrained(tmp_path)
    assert torch.equal(again(batch).hidden, model(batch).hidden)
    assert (again.outputs["text"].weight is again.inputs["text"].weight) == tied


def test_two_generations_run_at_once() -> None:
    model = neo().eval()
    prompts, grammar = [sample(2, 3)[:-1], sample(1, 2)[:-1]], TextGrammar(20)
    alone = [next(iter(model.generate([prompt], grammar, Generation(max_tokens=5, generator=seeded())))) for prompt in prompts]
    running = [iter(model.generate([prompt], grammar, Generation(max_tokens=5, generator=seeded()))) for prompt in prompts]
    for one, steps in zip(alone, running, strict=True):
        assert next(steps).segment.content == one.segment.content


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_loss_weights_share_out_documents() -> None:
    document = torch.tensor([0, 0, 0, 0, 2])
    assert loss_weights(document).tolist() == [0.5, 0.5, 0.5, 0.5, 1.0]
    assert loss_weights(document, "sample").tolist() == [0.25, 0.25, 0.25, 0.25, 1.0]
    assert loss_weights(document, "token").tolist() == [1.0] * 5


@pytest.mark.unchecked
def test_another_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match="reduction is 'none'"):
        loss_weights(torch.tensor([0]), "none")
