import pytest
import torch

from mmblocks import Decoder, Generation, LMHead, MultimodalModel, Sampling, TextEmbedding, text
from mmblocks.embedders import DepthCodeEmbedding
from mmblocks.generation import VectorBlock, VectorGrammar
from mmblocks.generation.autoregressive import generate_ids
from mmblocks.heads import DepthCodeHead

SIZES = (7, 5, 6)


def _head(*, layers: int = 1, sizes: tuple[int, ...] = SIZES) -> DepthCodeHead:
    torch.manual_seed(0)
    trunk = None if not layers else Decoder(dim=8, num_layers=layers, num_heads=2, mlp_dim=16)
    return DepthCodeHead(dim=12, sizes=sizes, trunk=trunk, init_std=0.5).eval()


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("sizes", [SIZES, (4,)])
def test_what_is_sampled_is_likeliest_given_the_levels_before(layers, sizes) -> None:
    head, hidden = _head(layers=layers, sizes=sizes), torch.randn(9, 12)
    codes = head.sample(hidden)
    states = head.states(hidden, codes)
    for level, size in enumerate(sizes):
        logits = head.heads[level].logits(states[:, level])
        assert logits.shape == (9, size) and torch.equal(logits.argmax(dim=1), codes[:, level])


@pytest.mark.parametrize("layers", [0, 2])
def test_the_loss_is_the_mean_cross_entropy_of_the_levels_that_have_codes(layers) -> None:
    head, hidden = _head(layers=layers), torch.randn(4, 12, requires_grad=True)
    target = torch.tensor([[6, 4, 5], [0, -1, 2], [-1, 3, -1], [-1, -1, -1]])
    losses = head.loss(hidden, target, torch.tensor([1.0, 2.0, 1.0, 1.0]))
    states = head.states(hidden, target)
    for row, wanted in enumerate(target.tolist()):
        each = [
            torch.nn.functional.cross_entropy(head.heads[level].logits(states[row, level]), torch.tensor(code))
            for level, code in enumerate(wanted)
            if code >= 0
        ]
        mean = torch.stack(each).mean() if each else torch.zeros(())
        torch.testing.assert_close(losses[row], mean * (2.0 if row == 1 else 1.0))
    losses.sum().backward()
    assert hidden.grad[:3].abs().sum(dim=1).gt(0).all() and not hidden.grad[3].any()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())


def test_a_level_knows_those_before_it_and_no_others() -> None:
    head, hidden = _head(), torch.randn(1, 12)
    first, second, third = (head.states(hidden, torch.tensor([codes]))[0] for codes in ((1, 2, 3), (4, 2, 3), (1, 4, 5)))
    assert torch.equal(first[0], second[0]) and not torch.allclose(first[1:], second[1:])
    assert torch.equal(first[:2], third[:2]) and not torch.allclose(first[2], third[2])


def test_sampling_follows_the_temperature_the_guidance_and_the_levels_that_are_there() -> None:
    head, hidden, free = _head(), torch.randn(1, 12), torch.randn(1, 12)
    many = hidden.expand(2000, -1)
    codes = head.sample(many, sampling=Sampling(), generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(codes[:, 0], minlength=7) / len(codes)
    wanted = head.heads[0].logits(head.states(hidden, codes[:1])[:, 0]).softmax(dim=-1)[0]
    torch.testing.assert_close(shares, wanted, atol=0.05, rtol=0)
    assert torch.equal(head.sample(hidden, unconditional=free, guidance=1.0), head.sample(hidden))
    assert torch.equal(head.sample(hidden, unconditional=free, guidance=0.0)[:, 0], head.sample(free)[:, 0])
    strong = head.sample(hidden, unconditional=free, guidance=9.0)
    logits = [head.heads[1].logits(head.states(rows, strong)[:, 1]) for rows in (hidden, free)]
    assert strong[0, 1] == (logits[1] + 9 * (logits[0] - logits[1])).argmax()
    present = torch.tensor([[False, True, False]])
    part = head.sample(hidden, present=present)
    assert (part >= 0).tolist() == present.tolist()
    assert part[0, 1] == head.heads[1].logits(head.states(hidden, part)[:, 1]).argmax()


def test_what_does_not_fit_is_refused() -> None:
    head, hidden = _head(), torch.randn(2, 12)
    with pytest.raises(ValueError, match=r"target holds 5; accepted: from 0 to below \(7, 5, 6\), level by level, or -1"):
        head.loss(hidden, torch.tensor([[0, 5, 0], [0, 0, 0]]))
    with pytest.raises(ValueError, match="unconditional and guidance go together"):
        head.sample(hidden, guidance=2.0)
    with pytest.raises(TypeError, match="trunk is a LMHead, which cannot be used here"):
        DepthCodeHead(dim=12, sizes=SIZES, trunk=LMHead(dim=4, vocab_size=4))
    for wrong in ({"sizes": ()}, {"sizes": (3, 0)}, {"dim": 0}):
        for part in (DepthCodeHead, DepthCodeEmbedding):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                part(**{"dim": 4, "sizes": SIZES} | wrong)


@pytest.mark.unchecked
def test_shapes_that_do_not_fit_are_refused() -> None:
    head, hidden, target = _head(), torch.randn(2, 12), torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"target has shape \(2, 2\); accepted: \(2, 3\)"):
        head.loss(hidden, target[:, :2])
    with pytest.raises(ValueError, match=r"weight has shape \(1,\)"):
        head.loss(hidden, target, torch.ones(1))
    with pytest.raises(TypeError, match="accepted: integers"):
        head.loss(hidden, target.float())
    with pytest.raises(ValueError, match=r"codes has shape \(2, 2\); accepted: \(N, 3\)"):
        DepthCodeEmbedding(sizes=SIZES, dim=4)(target[:, :2])


def test_an_embedding_is_the_sum_over_the_levels() -> None:
    embedding = DepthCodeEmbedding(sizes=SIZES, dim=4)
    every = [embedding(torch.tensor([codes])) for codes in ((1, 2, 3), (1, -1, 3), (4, 2, 3), (4, -1, 3))]
    torch.testing.assert_close(every[0] - every[1], every[2] - every[3])
    assert len({tuple(embedding(torch.tensor([[one, 0, 0]]))[0].tolist()) for one in range(-1, 7)}) == 8
    last = embedding(torch.tensor([[6, 4, 5], [6, 4, -1]]))
    rows = embedding.tables.weight
    torch.testing.assert_close(last[0], rows[7] + rows[13 - 1 + 0 + 1] + rows[20])
    torch.testing.assert_close(last[1], rows[7] + rows[13] + rows[14])
    with pytest.raises(ValueError, match="codes holds 7"):
        embedding(torch.tensor([[7, 0, 0]]))


def test_a_model_writes_codes_place_by_place(tmp_path) -> None:
    torch.manual_seed(0)
    model = MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=16, dim=12), "codes": DepthCodeEmbedding(sizes=SIZES, dim=12)},
        trunk=Decoder(dim=12, num_layers=1, num_heads=2, mlp_dim=16),
        outputs={"text": LMHead(dim=12, vocab_size=16), "codes": _head()},
    )
    grammar = VectorGrammar(VectorBlock(begin=7, end=None, size=(2, 3), head="codes", input="codes"), vocab_size=16)
    model.save_pretrained(tmp_path)
    written = []
    for one in (model.eval(), MultimodalModel.from_pretrained(tmp_path)):
        prompt = one.batch_builder()([[text([1, 7])]], padding="left")
        steps = generate_ids(one, prompt, grammar, Generation(generator=0))
        written.append(torch.stack([step.vectors[0] for step in steps]))
    assert torch.equal(*written) and written[0].shape == (6, 3) and written[0].dtype == torch.long
    assert (written[0] < torch.tensor(SIZES)).all() and (written[0] >= 0).all()
