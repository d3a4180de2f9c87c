"""A flow over patches of latents, as OmniGen has it, with another trunk and beside text."""

import pytest
import torch

from mmblocks import Decoder, Generation, LMHead, MultimodalModel, TextEmbedding, TextGrammar, text, vectors
from mmblocks.embedders import LinearPatchEmbedding
from mmblocks.generation import VectorBlock, VectorGrammar
from mmblocks.generation.autoregressive import generate_ids
from mmblocks.heads import SpanDenoisingHead
from mmblocks.layers import RectifiedFlow, SinCosPositions
from mmblocks.models import OmniGen, Phi3Decoder, VelocityHead
from mmblocks.sequence.segments import Segment, Vectors
from mmblocks.trunks.layer import Layer
from mmblocks.trunks.parts.attention import Attention
from mmblocks.trunks.parts.feed_forward import GatedMLP

DIM, CHANNELS, BEGIN, END = 16, 2, 7, 8
SCALING = {"type": "longrope", "factor": 2.0, "max_position": 9, "short_factor": (1.0, 1.0), "long_factor": (2.0, 4.0)}


def patches() -> LinearPatchEmbedding:
    return LinearPatchEmbedding(dim=DIM, patch_size=2, channels=CHANNELS, positions=SinCosPositions(dim=DIM))


def mixed(trunk: torch.nn.Module | None = None) -> MultimodalModel:
    """OmniGen's head and patches, a trunk of another kind, and a head for text."""
    torch.manual_seed(0)
    layer = Layer(mixer=Attention(num_heads=2, qk_norm=None), feed_forward=GatedMLP(hidden_dim=32))
    model = MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=16, dim=DIM), "vision": patches(), "noised": patches()},
        trunk=trunk or Decoder(dim=DIM, num_layers=2, layers=layer),
        outputs={
            "text": LMHead(dim=DIM, vocab_size=16),
            "image": SpanDenoisingHead(
                dim=DIM,
                channels=CHANNELS,
                patch=2,
                path=RectifiedFlow(),
                sampler=RectifiedFlow.sampler(num_steps=3),
                time="token",
                output=VelocityHead(dim=DIM, patch_size=2, channels=CHANNELS),
            ),
        },
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def latents(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, CHANNELS, generator=torch.Generator().manual_seed(seed))


def sample() -> list[Segment]:
    """An input image, words, an image that is learned, and words that are."""
    shown = vectors(latents(2, 4), input="vision", bidirectional=True)
    return [shown, text([1, BEGIN]), vectors(latents(4, 6), input="noised", target="image"), text([END, 2], target="text")]


def grammar(size: tuple[int, int], **options: tuple[int, ...]) -> VectorGrammar:
    block = VectorBlock(begin=BEGIN, end=None, size=size, head="image", input="noised", whole=True)
    return VectorGrammar(block, vocab_size=16, **options)


def test_text_and_patches_are_learned_in_one_row() -> None:
    model = mixed().train()
    batch = model.batch_builder()([sample(), [text([1, BEGIN]), vectors(latents(2, 2), input="noised", target="image")]])
    assert batch.spans["image"].counts == (6, 1)
    assert batch.spans["image"].rows().shape == (7, 4 * CHANNELS)
    assert batch.table.grid[0, 5:11].tolist() == [[0, row, column] for row in range(2) for column in range(3)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    given = {"image": {"t": torch.tensor([0.2, 0.9]), "noise": torch.randn(7, 4 * CHANNELS)}}
    before = model(batch, given=given).losses
    sum(before.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    optimizer.step()
    after = model(batch, given=given).losses
    assert after["image"] < before["image"] and after["text"] < before["text"]


def test_an_image_is_written_and_words_follow_it() -> None:
    model = mixed()
    made = list(model.generate([[text([1, BEGIN])]], grammar((4, 6), stop=(0,)), Generation(max_tokens=9, generator=0)))
    (_, image), (_, words) = made
    assert isinstance(image, Vectors) and image.values.shape == (4, 6, CHANNELS)
    assert len(words.content) == 9 - 6  # an image counts as many tokens as it takes
    # What was read of it is what a prompt with it has.
    prompt = [text([1, BEGIN]), image]
    ((_, again),) = model.generate([prompt], TextGrammar(16), Generation(max_tokens=3, generator=0))
    hidden = model.hidden(model.batch_builder()([prompt], learn=False))
    assert model.outputs["text"].logits(hidden[0, -1]).isfinite().all() and len(again.content) == 3


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_an_image_follows_from_its_seed_whatever_is_written_beside_it(guidance: float | None) -> None:
    model = mixed()
    prompts: list[list[Segment]] = [[text([1, BEGIN])], [*sample()[:2]], [text([3, 4, 5, BEGIN])]]
    grammars = [grammar((4, 6)), grammar((2, 2)), grammar((6, 2))]

    def made(rows: int) -> dict[int, torch.Tensor]:
        empty = None if guidance is None else [[text([BEGIN])]] * rows
        options = Generation(generator=5, guidance=guidance)
        found = model.generate(prompts[:rows], grammars[:rows], options, unconditional=empty)
        return {row: segment.values for row, segment in found}

    together, alone = made(3), made(1)
    assert [together[row].shape[:2] for row in range(3)] == [(4, 6), (2, 2), (6, 2)]
    torch.testing.assert_close(alone[0], together[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0][:2, :2], together[1])


def test_rows_of_several_sizes_are_written_in_one_pass_a_step() -> None:
    model, lengths = mixed(), []
    model.trunk.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[1].shape[1]))
    list(model.generate([[text([1, BEGIN])]] * 2, [grammar((4, 6)), grammar((2, 2))], Generation(generator=0)))
    assert lengths == [2, 7, 7, 7]  # the prompt, then the time and six patches, three times


class _Told(Phi3Decoder):
    """Notes how long rows are said to become."""

    def forward(self, *args, total_length=None, **options):
        told.append(None if total_length is None else total_length.tolist())
        return super().forward(*args, total_length=total_length, **options)


told: list[list[int] | None] = []


@pytest.fixture
def lengths() -> list[list[int] | None]:
    told.clear()
    return told


def test_a_trunk_is_told_how_long_rows_will_become(lengths: list[list[int] | None]) -> None:
    """Of each stream as if it were padded on its own: its longest prompt, the time, and the largest image."""
    model = mixed(_Told(dim=DIM, num_layers=1, num_heads=4, mlp_dim=16, rope_scaling=SCALING))
    prompts = [[text([1, BEGIN])], [text([3, 4, 5, BEGIN])]]
    empty = [[text([BEGIN])]] * 2
    options = Generation(generator=0, guidance=2.0)
    list(model.generate(prompts, [grammar((4, 6)), grammar((2, 2))], options, unconditional=empty))
    assert lengths == [[11, 11, 8, 8]] * 4
    lengths.clear()
    batch = model.batch_builder()([[text([1, 2])]], padding="left")
    list(generate_ids(model, batch, TextGrammar(16), Generation(max_tokens=3, generator=0)))
    assert lengths == [[5]] * 3


def test_rows_of_their_own_length_have_angles_of_their_own() -> None:
    torch.manual_seed(0)
    trunk = Phi3Decoder(dim=DIM, num_layers=1, num_heads=4, mlp_dim=16, rope_scaling=SCALING)
    table = mixed().batch_builder()([[text([1, 2, 3])]] * 2).table
    embeds = torch.randn(1, 3, DIM).expand(2, -1, -1)
    short, long = trunk(embeds, table, total_length=torch.tensor([9, 10]))
    assert torch.equal(short, trunk(embeds, table)[0]) and torch.equal(long, trunk(embeds, table, total_length=10)[1])
    assert not torch.allclose(short, long)


def test_the_parts_of_omnigen_stand_in_another_model() -> None:
    omnigen = OmniGen(vocab_size=16, dim=DIM, num_layers=1, num_heads=2, mlp_dim=16, channels=CHANNELS, table_size=8).eval()
    parts = omnigen.model
    model = MultimodalModel(
        inputs=dict(parts.inputs.items()),
        trunk=parts.trunk,
        outputs={**dict(parts.outputs.items()), "text": LMHead(dim=DIM, vocab_size=16)},
    )
    losses = model(model.batch_builder()([sample()])).losses
    assert set(losses) == {"image", "text"} and all(loss.isfinite() for loss in losses.values())
    options = Generation(generator=1, writing={"image": {"sampler": RectifiedFlow.sampler(num_steps=2)}})
    ((_, one),) = model.generate([[text([1, BEGIN])]], grammar((2, 2)), options)
    ((_, other),) = parts.generate([[text([1, BEGIN])]], grammar((2, 2)), options)
    torch.testing.assert_close(one.values, other.values)
