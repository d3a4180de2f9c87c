"""The trainer: what it optimises, what it skips, what it does to a codebook, and what it goes on from."""

import copy
import sys

import pytest
import torch
from torch import nn

from mmblocks import Block
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers import ConvVQ
from mmblocks.tokenizers.bottlenecks.ema import EMAVectorQuantizer
from mmblocks.tokenizers.bottlenecks.finite_scalar import FiniteScalarQuantizer
from mmblocks.tokenizers.bottlenecks.gaussian import DiagonalGaussian
from mmblocks.tokenizers.bottlenecks.lookup_free import LookupFreeQuantizer
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer
from mmblocks.tokenizers.conv_vq import StridedDecoder, StridedEncoder
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer
from mmblocks.training.adversarial import PatchDiscriminator
from mmblocks.training.tokenizer import TokenizerTrainer
from mmblocks.training.tokenizer_recipe import TokenizerRecipe
from tests.training.processes import results_of_processes


def refused(rank: int) -> str:
    """What the trainer says in a group of several processes; nothing is touched before."""
    made = tokenizer().eval()
    with pytest.raises(RuntimeError, match="in one process") as info:
        TokenizerTrainer(made)
    assert not made.training
    return str(info.value)


def test_several_processes_are_refused() -> None:
    assert results_of_processes(refused) == ["TokenizerTrainer trains in one process; a group of 2 is initialised"] * 2
    assert results_of_processes(_alone, num_processes=1) == [1]


def _alone(rank: int) -> int:
    trained = trainer()
    trained.step(batches(1)[0])
    return trained.num_steps


class Noisy(Block):
    """A continuous bottleneck that draws from torch's global generator."""

    def forward(self, features, *, loud=True):
        return Latents(z=features + 0.1 * torch.randn_like(features) if loud else features)


class Clips(nn.Module):
    """Works on clips frame by frame."""

    def __init__(self, inner, side):
        super().__init__()
        self.inner, self.side = inner, side

    def forward(self, x):
        if self.side == "encoder":
            return self.inner(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x), -1))
        return self.inner(x.flatten(0, 1)).unflatten(0, (len(x), -1)).transpose(1, 2)


def tokenizer(bottleneck: Block | None = None) -> VisualTokenizer:
    torch.manual_seed(0)
    if bottleneck is None:
        return ConvVQ(channels=(8, 12), num_codes=16, code_dim=4)
    shape = {"channels": (8, 12), "code_dim": 4}
    return VisualTokenizer(
        encoder=StridedEncoder(**shape), bottleneck=bottleneck, decoder=StridedDecoder(**shape), downsampling=(4, 4)
    )


def batches(count: int, begin: int = 0, side: int = 16) -> list[torch.Tensor]:
    """Smooth random images: the same for a number, whatever was asked for before."""
    made = []
    for number in range(begin, begin + count):
        coarse = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(number))
        made.append(nn.functional.interpolate(coarse, (side, side), mode="bilinear"))
    return made


def trainer(**settings) -> TokenizerTrainer:
    recipe = {"lr": 2e-3} | settings.pop("recipe", {})
    return TokenizerTrainer(settings.pop("tokenizer", None) or tokenizer(), recipe=TokenizerRecipe(**recipe), **settings)


def discriminator() -> PatchDiscriminator:
    torch.manual_seed(1)
    return PatchDiscriminator(channels=4, num_layers=1)


def snapshot(trained: TokenizerTrainer) -> list[torch.Tensor]:
    modules = [trained.tokenizer, *([trained.adversary.discriminator] if trained.adversary else [])]
    learned = [parameter for optimizer in trained.optimizers for parameter in optimizer.param_groups[0]["params"]]
    states = [
        optimizer.state[parameter] for optimizer in trained.optimizers for parameter in learned if parameter in optimizer.state
    ]
    tensors = [tensor for module in modules for tensor in module.state_dict().values()]
    return [tensor.clone() for tensor in tensors + [value for state in states for value in state.values()]]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def test_loss_is_the_weighted_sum() -> None:
    def perceptual(real, fake):
        return (real - fake).abs().amax((1, 2, 3))

    trained = trainer(recipe={"l1": 0.5, "l2": 2.0, "perceptual": 3.0, "loss_weights": {"codebook": 7.0}}, perceptual=perceptual)
    pixels = batches(1)[0]
    with torch.no_grad():
        rebuilt = trained.tokenizer.decode(trained.tokenizer.encode(pixels))
    figures = trained.step(pixels)
    assert figures["l1"] == pytest.approx(float((2 * pixels - 2 * rebuilt).abs().mean()))
    assert figures["l2"] == pytest.approx(float((2 * pixels - 2 * rebuilt).square().mean()))
    assert figures["perceptual"] == pytest.approx(float((pixels - rebuilt).abs().flatten(1).amax(1).mean()))
    parts = 0.5 * figures["l1"] + 2 * figures["l2"] + 3 * figures["perceptual"]
    assert figures["loss"] == pytest.approx(parts + 7 * figures["codebook"] + 0.25 * figures["commitment"], rel=1e-5)


def test_learns() -> None:
    trained = trainer(recipe={"kmeans_at": 15, "lr": 1e-2, "warm_up": 5})
    before = trained.evaluate(batches(2, 100))
    history = trained.fit(batches(40), 40)
    after = trained.evaluate(batches(2, 100))
    assert len(history) == trained.num_steps == 40 and history[-1]["l1"] < 0.9 * history[0]["l1"]
    assert set(after) == {"psnr", "ssim", "usage", "perplexity"}
    assert after["psnr"] > before["psnr"] + 1.5 and after["ssim"] > before["ssim"] + 0.2
    assert trained.tokenizer.training


def test_every_parameter_gets_a_gradient() -> None:
    trained = trainer(discriminator=discriminator(), recipe={"lecam": 0.05})
    trained.step(batches(1)[0])
    named = [*trained.tokenizer.named_parameters(), *trained.adversary.discriminator.named_parameters()]
    assert [name for name, parameter in named if parameter.grad is None or not parameter.grad.any()] == []


@pytest.mark.parametrize("weights", [None, {"kl": 1.0}])
def test_losses_and_weights_must_meet(weights) -> None:
    trained = trainer(
        tokenizer=tokenizer(EMAVectorQuantizer(num_codes=16, dim=4)) if weights is None else None, recipe={"loss_weights": weights}
    )
    with pytest.raises(
        ValueError, match="no weight: commitment" if weights is None else r"kl; accepted: .*\(codebook, commitment\)"
    ):
        trained.step(batches(1)[0])


def test_something_must_be_wanted() -> None:
    with pytest.raises(ValueError, match="l1 and l2 are 0"):
        trainer(recipe={"l1": 0.0}).step(batches(1)[0])
    with pytest.raises(ValueError, match="pixels holds no batch"):
        trainer().evaluate([])


def test_the_discriminator_joins_at_its_step() -> None:
    trained = trainer(discriminator=discriminator(), recipe={"gan_start": 2, "lecam": 0.05})
    alone = trainer(recipe={})
    before = copy.deepcopy(trained.adversary.discriminator.state_dict())
    for pixels in batches(2):
        assert "generator" not in trained.step(pixels)
        alone.step(pixels)
    assert same(list(before.values()), list(trained.adversary.discriminator.state_dict().values()))
    assert same(list(trained.tokenizer.state_dict().values()), list(alone.tokenizer.state_dict().values()))
    figures = trained.step(batches(1, 2)[0])
    assert {"generator", "adaptive_weight", "discriminator", "lecam"} <= set(figures)
    assert not torch.equal(before["net.0.weight"], trained.adversary.discriminator.state_dict()["net.0.weight"])


def test_adversarial_step_by_hand() -> None:
    trained = trainer(discriminator=discriminator(), recipe={"gan_weight": 0.8, "lecam": 0.05, "l2": 0.5})
    judge, pixels = copy.deepcopy(trained.adversary.discriminator), batches(1)[0]
    latents = trained.tokenizer.encode(pixels)
    rebuilt = trained.tokenizer.decode(latents)
    error = 2 * (rebuilt - pixels).abs().mean() + 0.5 * 4 * (rebuilt - pixels).square().mean()
    opinion = -judge(rebuilt).mean()
    last = trained.tokenizer.decoder.net[-1].weight
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (error, opinion)]
    weight = norms[0] / (norms[1] + 1e-4)
    total = error + 0.8 * weight * opinion + latents.loss["codebook"] + 0.25 * latents.loss["commitment"]
    real, fake = judge(pixels), judge(rebuilt)
    hinge = 0.5 * ((1 - real).relu().mean() + (1 + fake).relu().mean())
    lecam = (real - 1e-3 * fake.mean()).relu().square().mean() + (1e-3 * real.mean() - fake).relu().square().mean()
    figures = trained.step(pixels)
    wanted = {"generator": opinion, "adaptive_weight": weight, "loss": total, "discriminator": hinge, "lecam": lecam}
    assert {name: figures[name] for name in wanted} == pytest.approx(
        {name: value.item() for name, value in wanted.items()}, rel=1e-4
    )


def test_last_layer_by_name() -> None:
    assert trainer(discriminator=discriminator()).adversary.last_layer.shape == (8, 3, 4, 4)
    named = trainer(discriminator=discriminator(), recipe={"last_layer": "encoder.net.0.weight"})
    assert named.adversary.last_layer is named.tokenizer.encoder.net[0].weight
    with pytest.raises(ValueError, match=r"last_layer is 'decoder\.out'"):
        trainer(discriminator=discriminator(), recipe={"last_layer": "decoder.out"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_batch_with_nan_changes_nothing(value) -> None:
    learner = tokenizer(EMAVectorQuantizer(num_codes=16, dim=4))
    trained = trainer(tokenizer=learner, discriminator=discriminator(), recipe={"loss_weights": {"commitment": 1.0}})
    trained.fit(batches(2), 2)
    pixels, before = batches(1)[0], snapshot(trained)
    pixels[0, 0, 0, 0] = value
    with pytest.warns(UserWarning, match="step 2 is skipped: pixels: NaN or infinity"):
        figures = trained.step(pixels)
    assert figures["skipped"] == 1 and figures["loss"] != figures["loss"]
    assert same(before, snapshot(trained)) and (trained.num_steps, trained.num_skipped) == (3, 1)
    assert trained.step(batches(1, 3)[0])["skipped"] == 0 and not same(before, snapshot(trained))


@pytest.mark.parametrize(
    ("place", "message"),
    [("encoder", "features"), ("decoder", "reconstruction loss"), ("discriminator", "loss"), ("gradient", "gradients")],
)
def test_nan_on_the_way_changes_nothing(place, message) -> None:
    trained = trainer(
        tokenizer=tokenizer(EMAVectorQuantizer(num_codes=16, dim=4)),
        discriminator=discriminator(),
        recipe={"loss_weights": {"commitment": 1.0}},
    )
    trained.step(batches(1)[0])

    def spoil(module, inputs, output):
        return output * (float("nan") if place != "gradient" else 1)

    part = (
        trained.adversary.discriminator.net
        if place == "discriminator"
        else getattr(trained.tokenizer, place, trained.tokenizer.decoder)
    )
    part.register_forward_hook(spoil)
    if place == "gradient":
        part.register_full_backward_hook(lambda module, given, received: tuple(gradient * float("inf") for gradient in given))
    before = [parameter.clone() for parameter in trained.tokenizer.parameters() if parameter.requires_grad]
    codes = trained.tokenizer.bottleneck.codes.clone()
    with pytest.warns(UserWarning, match=f"step 1 is skipped: {message}"):
        trained.step(batches(1, 1)[0])
    assert same(before, [parameter for parameter in trained.tokenizer.parameters() if parameter.requires_grad])
    assert trained.tokenizer.bottleneck.codes.isfinite().all()
    if place == "encoder":
        assert torch.equal(codes, trained.tokenizer.bottleneck.codes)


def test_kmeans_waits_for_enough_features_and_lays_the_codebook() -> None:
    trained = trainer(recipe={"kmeans_at": 3})
    codes = trained.tokenizer.bottleneck.codes
    untouched = codes.detach().clone()
    small = [pixels[:2] for pixels in batches(6)]  # 32 features a batch, 8 x 16 are wanted
    for pixels in small[:5]:
        assert "codebook" not in trained.step(pixels)
    assert torch.equal(codes, untouched) and not trained.codebook.is_laid
    trained.fit([small[5], *batches(1)], 2)
    assert trained.codebook.is_laid and trained.codebook.waiting == []
    usage = trained.evaluate(batches(4))["usage"]
    assert usage > 0.8


def test_dead_codes_are_replaced() -> None:
    dead = trainer()
    with torch.no_grad():
        dead.tokenizer.bottleneck.codes[1:] += 100
    revived = trainer(recipe={"revive_every": 3, "revive_until": 5})
    revived.tokenizer.load_state_dict(dead.tokenizer.state_dict())
    history = [dead.fit(batches(9), 9), revived.fit(batches(9), 9)]
    assert {figures["revived"] for figures in history[0]} == {0}
    # After the third step 15 codes move; the sixth is after revive_until.
    assert [figures["revived"] for figures in history[1]] == [0, 0, 15, 0, 0, 0, 0, 0, 0]
    assert dead.evaluate(batches(4))["usage"] == 1 / 16
    assert revived.evaluate(batches(4))["usage"] > 0.5
    assert history[1][-1]["usage"] > history[0][-1]["usage"]


def test_a_bottleneck_that_cannot_be_laid() -> None:
    with pytest.raises(TypeError, match=r"kmeans_at is set, but Noisy is no bottleneck with one codebook and fit"):
        trainer(tokenizer=tokenizer(Noisy()), recipe={"kmeans_at": 1})
    fixed = FiniteScalarQuantizer(levels=(3, 3, 3, 3))  # one codebook, which nothing moves
    with pytest.raises(TypeError, match=r"revive_every is set, but FiniteScalarQuantizer is no .* replace_unused"):
        trainer(tokenizer=tokenizer(fixed), recipe={"revive_every": 1})


def test_a_continuous_tokenizer_and_its_options() -> None:
    loud = trainer(tokenizer=tokenizer(Noisy()))
    state = torch.get_rng_state()
    scores = loud.evaluate(batches(2))
    assert set(scores) == {"psnr", "ssim"} and scores == loud.evaluate(batches(2)) != loud.evaluate(batches(2), loud=False)
    assert torch.equal(state, torch.get_rng_state())
    quiet = trainer(tokenizer=tokenizer(Noisy()), recipe={"encode_options": {"loud": False}})
    quiet.step(batches(1)[0])
    assert torch.equal(state, torch.get_rng_state())


BOTTLENECKS = {
    "cosine": (VectorQuantizer(num_codes=16, dim=4, metric="cosine", entropy_temperature=0.1), {"kmeans_at": 1}),
    "ema": (EMAVectorQuantizer(num_codes=16, dim=4), {"kmeans_at": 1}),
    "ema_cosine": (EMAVectorQuantizer(num_codes=16, dim=4, metric="cosine", dead_below=1.0), {"kmeans_at": 1}),
    "lookup_free": (LookupFreeQuantizer(bits=(2, 2)), {}),
    "gaussian": (DiagonalGaussian(), {}),
}
WEIGHTS = {"codebook": 1.0, "commitment": 0.25, "sample_entropy": 0.1, "codebook_entropy": -0.1, "kl": 1e-4}


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_every_kind_of_bottleneck_trains_and_goes_on(kind, tmp_path, monkeypatch) -> None:
    bottleneck, recipe = BOTTLENECKS[kind]
    monkeypatch.setattr(VisualTokenizer, "loss_weights", WEIGHTS)

    def fresh() -> TokenizerTrainer:
        made = tokenizer(copy.deepcopy(bottleneck))
        if kind == "gaussian":
            made.encoder = StridedEncoder(channels=(8, 12), code_dim=8)
        return trainer(tokenizer=made, recipe=recipe)

    straight = fresh()
    wanted = straight.fit(batches(4), 4)
    first = fresh()
    first.fit(batches(3), 3)
    first.save(tmp_path)
    torch.manual_seed(1)
    resumed = TokenizerTrainer.resume(tmp_path)
    assert resumed.fit(batches(1, 3), 1) == wanted[3:]
    assert same(snapshot(straight), snapshot(resumed))
    quality = resumed.evaluate(batches(1))
    assert ("usage" in quality) == (kind != "gaussian") and wanted[3]["skipped"] == 0


def test_clips_are_judged_frame_by_frame() -> None:
    torch.manual_seed(0)
    images = tokenizer()
    parts = {"encoder": Clips(images.encoder, "encoder"), "decoder": Clips(images.decoder, "decoder")}
    clips = VisualTokenizer(**parts, bottleneck=images.bottleneck, downsampling=(1, 4, 4))
    trained = trainer(tokenizer=clips, discriminator=discriminator(), recipe={"loss_weights": ConvVQ.loss_weights})
    pixels = torch.stack(batches(3), dim=2)
    assert trained.step(pixels)["skipped"] == 0
    assert set(trained.evaluate(pixels)) == {"psnr", "ssim", "usage", "perplexity"}


FULL = {
    "recipe": {
        "kmeans_at": 1,
        "revive_every": 2,
        "gan_start": 4,
        "lecam": 0.05,
        "warm_up": 3,
        "decay_steps": 9,
        "loss_weights": {"codebook": 0.7},
    }
}


@pytest.mark.parametrize("stop", [2, 3, 6])
def test_resumed_training_is_equal_to_uninterrupted(stop, tmp_path) -> None:
    small = [pixels[:2] for pixels in batches(9)]  # at step 2, k-means still waits
    straight = trainer(**FULL, discriminator=discriminator())
    wanted = straight.fit(small, 9)
    first = trainer(**FULL, discriminator=discriminator())
    first.fit(small, stop)
    first.save(tmp_path / "run")
    torch.manual_seed(99)
    resumed = TokenizerTrainer.resume(tmp_path / "run")
    assert resumed.fit(small[stop:], 9 - stop) == wanted[stop:]
    assert same(snapshot(straight), snapshot(resumed))
    assert resumed.recipe == straight.recipe and resumed.num_steps == 9


def test_global_draws_go_on_too(tmp_path) -> None:
    straight = trainer(tokenizer=tokenizer(Noisy()))
    wanted = straight.fit(batches(4), 4)
    first = trainer(tokenizer=tokenizer(Noisy()))
    first.fit(batches(2), 2)
    first.save(tmp_path)
    torch.manual_seed(5)
    assert TokenizerTrainer.resume(tmp_path).fit(batches(2, 2), 2) == wanted[2:]


def test_saving_replaces_what_was_there(tmp_path) -> None:
    trained = trainer(discriminator=discriminator())
    for pixels in batches(2):
        trained.step(pixels)
        trained.save(tmp_path / "run")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
    assert TokenizerTrainer.resume(tmp_path / "run").num_steps == 2
    again = Block.from_pretrained(tmp_path / "run" / "tokenizer")
    assert torch.equal(again.bottleneck.codes, trained.tokenizer.bottleneck.codes)


def test_a_save_that_fails_leaves_the_old_one(tmp_path, monkeypatch) -> None:
    trained = trainer()
    trained.save(tmp_path / "run")
    trained.step(batches(1)[0])
    monkeypatch.setattr("mmblocks.training.tokenizer_state.save_file", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        trained.save(tmp_path / "run")
    assert TokenizerTrainer.resume(tmp_path / "run").num_steps == 0 and len(list(tmp_path.iterdir())) == 1


def test_frozen_parameters_stay(tmp_path) -> None:
    frozen = tokenizer()
    frozen.encoder.requires_grad_(False)
    trained = trainer(tokenizer=frozen)
    before = copy.deepcopy(frozen.encoder.state_dict())
    trained.step(batches(1)[0])
    trained.save(tmp_path)
    resumed = TokenizerTrainer.resume(tmp_path)
    resumed.step(batches(1)[0])
    assert same(list(before.values()), list(resumed.tokenizer.encoder.state_dict().values()))


def test_resuming_what_cannot_be(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no training to resume"):
        TokenizerTrainer.resume(tmp_path)
    trainer(perceptual=lambda real, fake: (real - fake).square().mean()).save(tmp_path)
    with pytest.raises(ValueError, match="hand it in again"):
        TokenizerTrainer.resume(tmp_path)
    (tmp_path / "state.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged, or was changed since it was saved"):
        TokenizerTrainer.resume(tmp_path)


def test_autocast_leaves_the_bottleneck_in_float32() -> None:
    trained = trainer(recipe={"autocast": True}, discriminator=discriminator())
    seen = []
    trained.tokenizer.bottleneck.register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0].dtype, output.z.dtype, torch.is_autocast_enabled("cpu")))
    )
    assert trained.step(batches(1)[0])["skipped"] == 0
    assert seen == [(torch.float32, torch.float32, False)]
    assert all(parameter.dtype == torch.float32 for parameter in trained.tokenizer.parameters())


@pytest.mark.parametrize("spoil", ["half", "frozen"])
def test_tokenizers_that_cannot_be_trained(spoil) -> None:
    made = tokenizer().bfloat16() if spoil == "half" else tokenizer().requires_grad_(False)
    with pytest.raises(ValueError, match="accepted: float32" if spoil == "half" else "no parameter that requires gradients"):
        TokenizerTrainer(made)


def test_pixels_that_are_no_pixels() -> None:
    trained = trainer()
    with pytest.raises(ValueError, match=r"\[0, 255\]"):
        trained.step(torch.tensor([0.0, 255.0]).expand(1, 3, 4, 2).repeat(1, 1, 1, 2))
    assert trained.num_steps == 0


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("pixels", "error", "message"),
    [
        ([torch.zeros(1, 3, 4, 4), torch.zeros(1)], TypeError, "pixels are a list"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), TypeError, "uint8"),
        (torch.zeros(1, 3, 4, 6), ValueError, "multiples of 4x4"),
    ],
)
def test_batches_that_are_no_pixels(pixels, error, message) -> None:
    trained = trainer()
    with pytest.raises(error, match=message):
        trained.fit([pixels], 1)
    assert trained.num_steps == 0


def test_batches_that_end_early() -> None:
    trained = trainer()
    with pytest.warns(UserWarning, match="the batches ended after 2 of 5 steps"):
        assert len(trained.fit(batches(2), 5)) == 2


def test_no_batch_is_taken_in_vain() -> None:
    stream = iter(batches(3))
    trained = trainer()
    seen = []
    trained.fit(stream, 2, after_step=seen.append)
    assert len(list(stream)) == 1 and len(seen) == 2


@pytest.mark.parametrize("terminal", [True, False])
def test_progress(terminal, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)
    monkeypatch.setenv("COLUMNS", "200")
    trainer().fit(batches(2), 2)
    shown = capsys.readouterr().err
    assert ("perplexity=" in shown and "usage=" in shown and "2/2" in shown) if terminal else shown == ""
