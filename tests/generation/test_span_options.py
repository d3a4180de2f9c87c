"""What spans are told beside, how they look on the way, and what is refused."""

import pytest
import torch
from torch import nn

from mmblocks import Decoder, Generation, LMHead, MultimodalModel, TextEmbedding, codes, text, vectors
from mmblocks.generation import VectorBlock, VectorGrammar
from mmblocks.generation.guidance import ThreeWay, VisualContrastive
from mmblocks.generation.span_writing import Preview
from mmblocks.heads import DenoisingHead, MaskedCodesHead, MaskedVectorsHead, RegressionHead, SpanDenoisingHead
from mmblocks.layers import DiffusersSampler
from mmblocks.layers.diffusion.adaln_mlp import AdaLNMLP
from mmblocks.layers.diffusion.masked_tokens import ConfidenceSampler
from mmblocks.layers.diffusion.noise_paths import FlowPath
from mmblocks.sequence import Modality
from mmblocks.sequence.segments import Segment, Text, Vectors

DIM, BEGIN, SIZE = 16, 7, (2, 3)


def sampler(steps: int = 4) -> DiffusersSampler:
    return DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=steps)


def model_of(head: nn.Module) -> MultimodalModel:
    return MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=16, dim=DIM), "latents": nn.Linear(4, DIM)},
        trunk=Decoder(dim=DIM, num_layers=2, num_heads=2, mlp_dim=32),
        outputs={"text": LMHead(dim=DIM, vocab_size=16), "image": head},
    ).eval()


def denoiser(**options: int) -> SpanDenoisingHead:
    torch.manual_seed(0)
    return SpanDenoisingHead(dim=DIM, channels=4, sampler=sampler(), **options)


def grammar(head: str = "image", **options: bool) -> VectorGrammar:
    block = VectorBlock(begin=BEGIN, end=None, size=SIZE, head=head, input="latents", **({"whole": True} | options))
    return VectorGrammar(block, vocab_size=16)


def made(model: MultimodalModel, options: Generation, streams: int = 1) -> torch.Tensor:
    prompts: list[list[Segment]] = [[text([1, BEGIN])]]
    without: list[list[Segment]] = [[text([stream, BEGIN])] for stream in range(2, streams + 1)]
    ((_, segment),) = model.generate(prompts, grammar(), options, unconditional=without or None)
    assert isinstance(segment, Vectors)
    return segment.values


def test_a_preview_comes_for_every_pass_and_ends_at_the_image() -> None:
    model = model_of(denoiser())
    *before, last = model.generate([[text([1, BEGIN])]], grammar(), Generation(generator=0, previews=True))
    previews = [segment for _, segment in before]
    assert [one.step for one in previews if isinstance(one, Preview)] == [0, 1, 2, 3]
    far = []
    for one in previews:
        assert isinstance(one, Preview)
        assert isinstance(one.segment, Vectors)
        assert isinstance(last.segment, Vectors)
        far.append(float((one.segment.values - last.segment.values).detach().norm()))
    assert far == sorted(far, reverse=True)
    assert isinstance(last.segment, Vectors)


def test_classes_are_told_by_stream() -> None:
    """Guidance against no class: the same prompt in both streams, and u + s (c - u) in every step."""
    model = model_of(denoiser(num_classes=3))

    def options(labels: list[int], guidance: float | None) -> Generation:
        return Generation(generator=0, guidance=guidance, given={"label": torch.tensor(labels)})

    prompt: list[list[Segment]] = [[text([1, BEGIN])]]
    ((_, guided),) = model.generate(prompt, grammar(), options([1, 3], 1.0), unconditional=prompt)
    ((_, other),) = model.generate(prompt, grammar(), options([1, 3], 4.0), unconditional=prompt)
    assert isinstance(guided, Vectors)
    assert isinstance(other, Vectors)
    torch.testing.assert_close(guided.values, made(model, options([1], None)))
    assert not torch.allclose(guided.values, other.values, atol=1e-3)
    torch.testing.assert_close(made(model, Generation(generator=0)), made(model, options([3], None)))
    with pytest.raises(ValueError, match="label"):
        made(model, options([4], None))


def test_three_streams_are_one_where_both_scales_are_one() -> None:
    model = model_of(denoiser())
    plain = made(model, Generation(generator=0))
    torch.testing.assert_close(made(model, Generation(generator=0, guidance=ThreeWay(scale=1.0, image_scale=1.0)), 3), plain)
    assert not torch.allclose(made(model, Generation(generator=0, guidance=ThreeWay(scale=3.0, image_scale=1.0)), 3), plain)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_heads_of_single_tokens_guide_themselves(guidance: float) -> None:
    torch.manual_seed(0)
    net = AdaLNMLP(dim=4, condition_dim=DIM, width=8, num_blocks=1)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    model = model_of(MaskedVectorsHead(head=DenoisingHead(net=net, path=FlowPath(), sampler=sampler()), dim=DIM, num_steps=3))
    plain, guided = made(model, Generation(generator=0)), made(model, Generation(generator=0, guidance=guidance), 2)
    assert torch.allclose(plain, guided, atol=1e-5) == (guidance == 1.0)


def test_what_is_read_in_place_of_a_span_may_be_something_else() -> None:
    model = model_of(denoiser())
    read: list[Segment] = []

    def read_back(segment: Segment) -> list[Segment]:
        read.append(segment)
        return [text([3, 4])]

    block = VectorBlock(begin=BEGIN, end=None, size=SIZE, head="image", input="latents", whole=True, read_back=read_back)
    rule = VectorGrammar(block, vocab_size=16, stop=(0,))
    (_, first), *rest = model.generate([[text([1, BEGIN])]], rule, Generation(max_tokens=9, generator=0))
    assert read == [first]
    batch = model.batch_builder()([[text([1, BEGIN, 3, 4])]])
    head = model.outputs["text"]
    assert isinstance(head, LMHead)
    assert rest
    assert head.logits(model.hidden(batch)[0, -1]).isfinite().all()


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (
            lambda m: list(m.generate([[text([BEGIN])]], grammar("text"))),
            ValueError,
            "lets head .text. write whole spans",
        ),
        (
            lambda m: made(m, Generation(generator=0, guidance=VisualContrastive()), 2),
            ValueError,
            "guidance is a VisualContrastive, and a head writes vectors; accepted: one with scales",
        ),
        (
            lambda m: list(m.generate([[text([BEGIN])]], grammar(), cache=m.trunk.new_cache(1, 5))),
            ValueError,
            "the cache has 1 rows of 5 tokens",
        ),
        (lambda m: m(m.batch_builder()([[span()]]), given={"text": {}}), ValueError, "given is for heads"),
        (lambda m: m(m.batch_builder()([[span()]]), given={"image": {"t": torch.tensor([1000])}}), ValueError, "t lies in"),
        (lambda m: m(m.batch_builder()([[span()]]), given={"image": {"t": torch.tensor([1, 2])}}), ValueError, "t "),
        (lambda m: m.batch_builder()([[vectors(torch.zeros(2, 4), input="other", target="image")]]), ValueError, "input 'other'"),
    ],
)
def test_wrong_uses_are_refused(run: object, error: type[Exception], message: str) -> None:
    assert callable(run)
    with pytest.raises(error, match=message):
        run(model_of(denoiser()))


def span() -> Segment:
    return vectors(torch.zeros(2, 4), input="latents", target="image")


def test_a_cache_of_ones_own_that_just_fits_is_enough() -> None:
    model = model_of(denoiser())
    cache = model.trunk.new_cache(1, 8)
    ((_, segment),) = model.generate([[text([1, BEGIN])]], grammar(), Generation(generator=0), cache=cache)
    assert isinstance(segment, Vectors)
    torch.testing.assert_close(segment.values, made(model, Generation(generator=0)))


def test_regression_alone_is_no_head_of_spans() -> None:
    model = model_of(RegressionHead(dim=DIM, target_dim=4))
    with pytest.raises(ValueError, match="lets head 'image' write whole spans"):
        made(model, Generation())


def test_text_and_codes_are_masked_and_written_by_one_head() -> None:
    """As in discrete diffusion over both: one vocabulary, one mask."""
    torch.manual_seed(0)
    whole = MaskedCodesHead(head=LMHead(dim=DIM, vocab_size=16), mask_id=16, sampler=ConfidenceSampler(num_steps=2))
    model = MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=17, dim=DIM)},
        trunk=Decoder(dim=DIM, num_layers=2, num_heads=2, mlp_dim=32),
        outputs={"any": whole},
    ).eval()
    grid = codes(torch.randint(8, 16, (2, 3)), target="any")
    batch = model.batch_builder()([[text([1, BEGIN]), grid, text([2, 3, 4], target="any")]])
    assert batch.spans["any"].counts == (6, 3)
    assert batch.table.modality[0].tolist() == [0] * 2 + [1] * 12 + [0] * 3
    model(batch).losses["any"].backward()
    block = VectorBlock(begin=None, end=None, size=(4,), head="any", input="text", whole=True, modality=Modality.TEXT)
    ((_, made),) = model.generate([[text([1, 2])]], VectorGrammar(block, vocab_size=16), Generation(generator=0))
    assert isinstance(made, Text)
    assert len(made.content) == 4
    assert max(made.content) < 16
