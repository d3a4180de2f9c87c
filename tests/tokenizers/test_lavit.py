import pytest
import torch

from mmblocks import Block
from mmblocks.layers.towers.eva import EvaTower
from mmblocks.sequence.tokens import PADDING
from mmblocks.tokenizers.lavit.decoder import LaVITDecoder
from mmblocks.tokenizers.lavit.tokenizer import LaVITTokenizer, language_ids

SIZE = (28, 42)


def tokenizer(*, decodes: bool = True) -> LaVITTokenizer:
    torch.manual_seed(0)
    lavit = LaVITTokenizer(
        encoder=EvaTower(image_size=SIZE, patch_size=7, dim=16, num_layers=1, num_heads=2, mlp_dim=20),
        decoder=LaVITDecoder(code_dim=4, dim=16, num_patches=24, num_layers=1, num_heads=2, mlp_dim=20) if decodes else None,
        image_size=SIZE,
        patch_size=7,
        dim=16,
        num_codes=11,
        code_dim=4,
        num_layers=2,
        num_heads=2,
        mlp_dim=20,
        llm_dim=9,
    )
    for parameter in lavit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return lavit


def draws(*kept: set[int]) -> torch.Tensor:
    """Noise that decides for the patches of each image."""
    gumbel = torch.zeros(len(kept), 24, 2)
    for row, numbers in zip(gumbel, kept, strict=True):
        row[list(numbers), 0] = 1e4
        row[sorted(set(range(24)) - numbers), 1] = 1e4
    return gumbel


def test_an_image_has_as_many_tokens_as_patches_are_kept() -> None:
    lavit = tokenizer().eval()
    latents = lavit.encode(torch.rand(3, 3, *SIZE), gumbel=draws({2, 3, 23}, set(), {0, 7, 8, 9}))
    assert latents.lengths.tolist() == [3, 0, 4] and latents.loss is None
    assert latents.positions.tolist() == [[2, 3, 23, PADDING], [PADDING] * 4, [0, 7, 8, 9]]
    real = latents.positions != PADDING
    assert torch.equal(latents.ids != PADDING, real)
    for padded in (latents.z, latents.features, lavit.llm_embeds(latents)):
        assert padded.shape[:2] == (3, 4) and not padded[~real].any() and padded[real].abs().sum(-1).all()
    torch.testing.assert_close(lavit.lookup(latents.ids), latents.z)
    decoded = lavit.decode(latents.ids)
    assert decoded.shape == (3, 24, 16) and decoded.isfinite().all()
    torch.testing.assert_close(decoded, lavit.decode(latents))


def test_an_image_does_not_depend_on_those_beside_it() -> None:
    lavit = tokenizer().eval()
    pixels, gumbel = torch.rand(2, 3, *SIZE), draws({5, 6}, set(range(20)))
    together, alone = lavit.encode(pixels, gumbel=gumbel), lavit.encode(pixels[:1], gumbel=gumbel[:1])
    assert torch.equal(together.ids[0, :2], alone.ids[0])
    torch.testing.assert_close(together.features[0, :2], alone.features[0])
    torch.testing.assert_close(lavit.decode(together)[0], lavit.decode(alone)[0])


def test_all_or_nothing_may_be_kept() -> None:
    lavit = tokenizer().train()
    for kept in (set(), set(range(24))):
        latents = lavit.encode(torch.rand(2, 3, *SIZE), gumbel=draws(kept, kept))
        assert latents.ids.shape == (2, len(kept)) and latents.features.isfinite().all()
        assert all(loss.isfinite() for loss in latents.loss.values())
    torch.testing.assert_close(latents.loss["rate"], torch.tensor((2 / 3) ** 2))


def test_kept_patches_see_kept_ones_before_them_and_all_dropped_ones() -> None:
    lavit = tokenizer().eval().double()
    features = torch.randn(1, 25, 16, dtype=torch.double, requires_grad=True)
    latents = lavit.bottleneck(features, gumbel=draws({3, 10, 20}))
    (gradient,) = torch.autograd.grad(latents.features[0, 1].square().sum(), features)
    seen = gradient[0, 1:].abs().amax(dim=-1) > 1e-5  # every key keeps a millionth
    assert set(range(24)) - set(seen.nonzero().flatten().tolist()) == {20}


def test_draws_come_from_the_generator_unless_there_are_none() -> None:
    lavit = tokenizer().eval()
    pixels = torch.rand(1, 3, *SIZE)
    drawn = [lavit.encode(pixels, generator=torch.Generator().manual_seed(seed)).positions for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    certain = lavit.encode(pixels, deterministic=True)
    scores = lavit.bottleneck.selector(lavit.features(pixels)[:, 1:])
    assert torch.equal(certain.positions[0], (scores[0, :, 0] >= scores[0, :, 1]).nonzero().flatten())
    assert torch.equal(certain.positions, lavit.encode(pixels, gumbel=torch.zeros(1, 24, 2)).positions)


def test_training_reaches_every_parameter() -> None:
    lavit = tokenizer().train()
    pixels = torch.rand(2, 3, *SIZE)
    features = lavit.features(pixels)
    latents = lavit.bottleneck(features, generator=torch.Generator().manual_seed(0))
    losses = lavit.training_losses(latents, features)
    assert losses.keys() == {"codebook", "commitment", "rate", "features"} and losses.keys() > lavit.loss_weights.keys()
    (sum(losses.values()) + lavit.llm_embeds(latents).square().mean()).backward()
    assert not [name for name, parameter in lavit.named_parameters() if not parameter.grad.any()]
    with pytest.raises(ValueError, match="those of training mode"):
        lavit.eval().training_losses(lavit.encode(pixels), features)


def test_the_selector_learns_from_what_its_choice_changes() -> None:
    bottleneck = tokenizer().eval().bottleneck
    merged = bottleneck(torch.randn(1, 25, 16), generator=torch.Generator().manual_seed(0)).features
    (merged * torch.randn_like(merged)).sum().backward()
    assert all(parameter.grad.any() for parameter in bottleneck.selector.parameters())


def test_ids_of_the_language_model() -> None:
    ids = torch.tensor([[4, 0, PADDING], [7, 8, 9], [PADDING] * 3])
    assert [row.tolist() for row in language_ids(ids, special=False)] == [[32006, 32002], [32009, 32010, 32011], []]
    assert [row.tolist() for row in language_ids(ids)][::2] == [[32000, 32006, 32002, 32001], [32000, 32001]]


def test_saved_and_loaded_also_in_bfloat16(tmp_path) -> None:
    lavit = tokenizer().eval()
    lavit.save_pretrained(tmp_path / "lavit")
    pixels = torch.rand(2, 3, *SIZE)
    again = Block.from_pretrained(tmp_path / "lavit")
    assert torch.equal(again.encode(pixels, deterministic=True).z, lavit.encode(pixels, deterministic=True).z)
    halved = Block.from_pretrained(tmp_path / "lavit", dtype=torch.bfloat16)
    latents = halved.encode(pixels.bfloat16(), deterministic=True)
    assert latents.z.dtype == halved.decode(latents).dtype == halved.llm_embeds(latents).dtype == torch.bfloat16


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda lavit, pixels: lavit.encode(pixels[..., :28]), ValueError, "pixels are 28x28; accepted: 28x42"),
        (lambda lavit, pixels: lavit.encode(pixels * 255), ValueError, r"accepted: \[0, 1\]"),
        (lambda lavit, pixels: lavit.encode(pixels, gumbel=torch.zeros(1, 23, 2)), ValueError, r"accepted: \(1, 24, 2\)"),
        (
            lambda lavit, pixels: lavit.encode(pixels, gumbel=torch.zeros(1, 24, 2), deterministic=True),
            ValueError,
            "deterministic is True and draws",
        ),
        (lambda lavit, pixels: lavit.bottleneck(torch.full((1, 25, 16), float("nan"))), ValueError, "NaN or infinity"),
        (lambda lavit, pixels: lavit.lookup(torch.tensor([[11, -1]])), ValueError, r"accepted: \[0, 10\]"),
        (lambda lavit, pixels: lavit.lookup(torch.tensor([[-2, 3]])), ValueError, r"\[-2, 3\]"),
        (lambda lavit, pixels: lavit.decode(torch.zeros(1, 25, dtype=torch.long)), ValueError, "at most 24"),
        (lambda lavit, pixels: tokenizer(decodes=False).decode(torch.zeros(1, 2, dtype=torch.long)), ValueError, "LaVITDecoder"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call(tokenizer().eval(), torch.rand(1, 3, *SIZE))
