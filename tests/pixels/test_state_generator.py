"""Images of vectors: steps, loops and losses are those of diffusers, for each of its networks."""

import json
from pathlib import Path
from typing import ClassVar

import diffusers
import pytest
import torch

from mmblocks.checkpoints.hub import repository
from mmblocks.checkpoints.surgery.freezing import freeze
from mmblocks.checkpoints.surgery.low_rank import attach_lora, load_lora, save_lora
from mmblocks.layers import DiffusersSampler
from mmblocks.layers.diffusion.noise_paths import FlowPath
from mmblocks.layers.diffusion.scheduler_paths import path_of_scheduler
from mmblocks.pixels import DiffusersDenoiser, StateGenerator
from mmblocks.pixels.denoiser_kinds import KINDS
from mmblocks.pixels.pipelines import find_pipeline
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers import DiffusersAutoencoder, VisualTokenizer
from tests.pixels.networks import (
    AUTOENCODER,
    NETWORKS,
    POOLED,
    SCHEDULERS,
    autoencoder,
    called,
    generator_of,
    loop,
    network,
    sampler,
    values,
)

every = pytest.mark.parametrize("name", NETWORKS)
LIKE = {"rtol": 1e-4, "atol": 1e-5}
MASKED = [name for name in NETWORKS if KINDS[NETWORKS[name][0]].masked]


def test_every_kind_has_a_small_one() -> None:
    assert {kind for kind, _ in NETWORKS.values()} == KINDS.keys()


@every
@torch.no_grad()
def test_a_step_is_the_call_of_its_pipeline(name) -> None:
    ours = network(name)
    x, conditions, time = values(2, 4, 4, 6), values(2, 3, 6, seed=1), torch.tensor([900.0, 40.0])
    pooled = values(2, POOLED[name], seed=2) if name in POOLED else None
    real = torch.tensor([[True, True, False], [True, True, True]]) if name in MASKED else None
    wanted = called(name, ours.model, x, time, conditions, real, pooled)
    found = ours(x, time, conditions, size=(8, 12), real=real, pooled=pooled)
    torch.testing.assert_close(found, wanted, **LIKE)
    assert not torch.allclose(found, ours(x, time + 50, conditions, size=(8, 12), real=real, pooled=pooled), **LIKE)
    if pooled is not None:
        assert not torch.allclose(found, ours(x, time, conditions, size=(8, 12), real=real), **LIKE)


@every
@torch.no_grad()
def test_conditions_that_are_not_real_change_nothing(name) -> None:
    ours = network(name)
    x, conditions, time = values(2, 4, 4, 6), values(2, 4, 6, seed=1), torch.tensor([900.0, 40.0])
    real = torch.tensor([[True, False, True, False], [True, True, True, False]])
    found = ours(x, time, conditions, size=(8, 12), real=real)
    for row in range(2):
        alone = ours(x[row : row + 1], time[row : row + 1], conditions[row : row + 1, real[row]], size=(8, 12))
        torch.testing.assert_close(found[row : row + 1], alone, **LIKE)
    assert not torch.allclose(found, ours(x, time, conditions, size=(8, 12)), **LIKE)


@every
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_sampling_is_the_loop_of_its_pipeline(name, batch) -> None:
    generator = generator_of(name)
    noise, conditions, nothing = values(batch, 4, 4, 6), values(batch, 3, 6, seed=1), values(batch, 3, 6, seed=2)
    for unconditional, guidance in ((None, 1.0), (nothing, 2.5)):
        wanted = loop(name, generator.network.model, noise, conditions, unconditional, guidance)
        trajectory: list[torch.Tensor] = []
        found = generator.sample(
            conditions, unconditional=unconditional, guidance=guidance, size=(8, 12), noise=noise, trajectory=trajectory
        )
        torch.testing.assert_close(trajectory[-1], wanted, rtol=1e-3, atol=1e-4)
        decoded = generator.autoencoder.decode(Latents(z=wanted.movedim(1, -1)))
        torch.testing.assert_close(found, decoded, rtol=1e-3, atol=1e-4)
        assert found.shape == (batch, 3, 8, 12)
        # An unconditional stream of another length goes by itself.
    longer = torch.cat([nothing, nothing[:, :1]], dim=1)
    wanted = loop(name, generator.network.model, noise, conditions, longer, 2.5)
    generator.sample(conditions, unconditional=longer, guidance=2.5, size=(8, 12), noise=noise, trajectory=(latents := []))
    torch.testing.assert_close(latents[-1], wanted, rtol=1e-3, atol=1e-4)


@every
def test_loss_is_that_of_diffusers_own_training(name) -> None:
    generator = generator_of(name)
    conditions, pixels = values(2, 3, 6, seed=1).requires_grad_(), torch.rand(2, 3, 8, 12)
    noise, t = values(2, 4, 4, 6, seed=3), torch.tensor([700, 30])
    with torch.no_grad():
        latents = generator.autoencoder.encode(pixels).z.movedim(-1, 1)
    scheduler = getattr(diffusers, SCHEDULERS[name][0])(**SCHEDULERS[name][1])
    if name in ("sd", "sdxl"):
        kept = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        noised, target, time = kept.sqrt() * latents + (1 - kept).sqrt() * noise, noise, t.float()
    else:
        shift = {"sd3": 3.0, "flux": 1.0, "sana": 3.0, "lumina2": 6.0}[name]
        share = 1 - t / 1000
        share = shift * share / (1 + (shift - 1) * share)
        noised = share.view(-1, 1, 1, 1) * noise + (1 - share.view(-1, 1, 1, 1)) * latents
        target, time = noise - latents, 1000 * share
    pooled = torch.zeros(2, POOLED[name]) if name in POOLED else None
    wanted = (called(name, generator.network.model, noised, time, conditions, None, pooled) - target).square().mean(dim=(1, 2, 3))
    found = generator.loss(conditions, pixels, t=t, noise=noise)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert found.dtype == torch.float32
    again = generator.loss(conditions, Latents(z=latents.movedim(1, -1)), t=t, noise=noise)
    assert torch.equal(found, again)
    (gradient,) = torch.autograd.grad(found.sum(), conditions)
    assert bool((gradient.abs().sum(dim=-1) > 0).all())
    assert not any(parameter.requires_grad for parameter in generator.autoencoder.parameters())


@every
def test_losses_and_images_of_a_seed(name) -> None:
    generator, conditions, pixels = generator_of(name), values(2, 3, 6), torch.rand(2, 3, 8, 4)

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(5)

    found = generator.loss(conditions, pixels, generator=seeded())
    t, noise = generator.times_and_noise(2, (8, 4), device=conditions.device, generator=seeded())
    assert torch.equal(found, generator.loss(conditions, pixels, t=t, noise=noise))
    drawn = generator(conditions, size=(8, 4), generator=seeded())
    assert torch.equal(drawn, generator.sample(conditions, size=(8, 4), generator=seeded()))
    real = torch.tensor([[True, True, False]] * 2)
    short = generator.sample(conditions[:, :2], size=(8, 4), generator=seeded())
    torch.testing.assert_close(generator.sample(conditions, size=(8, 4), real=real, generator=seeded()), short, **LIKE)
    losses = generator.loss(conditions, pixels, real=real, generator=seeded())
    torch.testing.assert_close(losses, generator.loss(conditions[:, :2], pixels, generator=seeded()), **LIKE)


@every
def test_a_frozen_network_and_low_rank_adapters(name, tmp_path: Path) -> None:
    generator, conditions, pixels = generator_of(name), values(1, 3, 6).requires_grad_(), torch.rand(1, 3, 8, 4)
    t, noise = torch.tensor([500]), values(1, 4, 4, 2)
    freeze(generator)
    before = generator.loss(conditions, pixels, t=t, noise=noise)
    before.sum().backward()
    assert bool(conditions.grad.abs().sum() > 0)
    assert all(parameter.grad is None for parameter in generator.parameters())
    linear = [name for name, part in generator.named_modules() if type(part) is torch.nn.Linear and name.endswith("to_k")]
    attach_lora(generator, linear, rank=2)
    assert torch.equal(generator.loss(conditions, pixels, t=t, noise=noise), before)
    trained = {name: each for name, each in generator.named_parameters() if each.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    for each in trained.values():
        each.data += 0.1
    after = generator.loss(conditions, pixels, t=t, noise=noise)
    assert not torch.allclose(after, before)
    save_lora(generator, tmp_path)
    other = generator_of(name)
    load_lora(other, tmp_path)
    torch.testing.assert_close(other.loss(conditions, pixels, t=t, noise=noise), after)


@every
def test_folders_of_diffusers(name, tmp_path: Path) -> None:
    ours, folder = network(name), KINDS[NETWORKS[name][0]].folder
    ours.model.save_pretrained(tmp_path / folder)
    scheduler, options = SCHEDULERS[name]
    getattr(diffusers, scheduler)(**options).save_pretrained(tmp_path / "scheduler")
    made = autoencoder()
    made.model.save_pretrained(tmp_path / "vae")
    vae = DiffusersAutoencoder.from_pretrained(tmp_path, subfolder="vae")
    loaded = StateGenerator.from_diffusers(tmp_path, autoencoder=vae, num_steps=3)
    assert loaded.sampler.even == (name in ("flux", "lumina2")) and not loaded.network.training
    conditions, noise = values(2, 3, 6), values(2, 4, 4, 6)
    wanted = generator_of(name).sample(conditions, size=(8, 12), noise=noise)
    assert torch.equal(loaded.sample(conditions, size=(8, 12), noise=noise), wanted)
    loaded.save_pretrained(tmp_path / "own")
    again = StateGenerator.from_pretrained(tmp_path / "own")
    assert torch.equal(again.sample(conditions, size=(8, 12), noise=noise), wanted)
    assert not any(parameter.requires_grad for parameter in again.autoencoder.parameters())
    ours.to_upstream(tmp_path / "back")
    theirs = type(ours.model).from_pretrained(tmp_path / "back", low_cpu_mem_usage=False)
    torch.testing.assert_close(theirs.state_dict(), ours.model.state_dict(), rtol=0, atol=0)


def test_a_pipeline_on_the_hub_is_read_at_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    asked = []

    class Known:
        files: ClassVar = {"scheduler/scheduler_config.json": None, "unet/config.json": None, "vae/config.json": None}
        commit = "a" * 40

        def get(self, path: str) -> Path:
            asked.append(path)
            return file

    monkeypatch.setattr(repository, "find", lambda repo, revision: asked.append((repo, revision)) or Known())
    found = find_pipeline("someone/pipeline", "main")
    assert (found.network, found.scheduler, found.revision) == ("unet", {"_class_name": "DDIMScheduler"}, "a" * 40)
    assert asked == [("someone/pipeline", "main"), "scheduler/scheduler_config.json"]


def test_folders_that_are_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no pipeline of diffusers; accepted: scheduler/"):
        StateGenerator.from_diffusers(tmp_path, autoencoder=None)
    network("sd").model.save_pretrained(tmp_path / "unet")
    (tmp_path / "scheduler").mkdir()
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"num_train_timesteps": 1000}))
    with pytest.raises(ValueError, match="names no class"):
        StateGenerator.from_diffusers(tmp_path, autoencoder=None)
    file.write_text(json.dumps({"_class_name": "DiffusionPipeline"}))
    with pytest.raises(ValueError, match="accepted: the name of a scheduler"):
        StateGenerator.from_diffusers(tmp_path, autoencoder=None)
    with pytest.raises(ValueError, match="revision is 'main'"):
        StateGenerator.from_diffusers(tmp_path, autoencoder=None, revision="main")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        StateGenerator.from_diffusers("nowhere", autoencoder=None)


@pytest.mark.parametrize("name", POOLED)
def test_pooled_vectors(name) -> None:
    conditions, pixels = values(2, 3, 6), torch.rand(2, 3, 8, 4)
    t, noise = torch.tensor([500, 2]), values(2, 4, 4, 2)
    zeros, learned = generator_of(name), generator_of(name, pooled="learned")
    with torch.no_grad():
        begun = learned.loss(conditions, pixels, t=t, noise=noise)
        assert torch.equal(begun, zeros.loss(conditions, pixels, t=t, noise=noise))
    learned.loss(conditions, pixels, t=t, noise=noise).sum().backward()
    assert bool(learned.pooling.weight.grad.abs().sum() > 0)
    with pytest.raises(ValueError, match="pooled is 'mean', of width 6, with a network that reads 5"):
        generator_of(name, pooled="mean")


def test_the_mean_as_pooled_vector_is_that_of_real_conditions() -> None:
    kind, arguments = NETWORKS["sd3"]
    net = DiffusersDenoiser(kind=kind, arguments=arguments | {"pooled_projection_dim": 6}).eval()
    generator = StateGenerator(network=net, sampler=sampler("sd3"), autoencoder=autoencoder(), pooled="mean").eval()
    pooled = []
    net.register_forward_pre_hook(lambda _, __, named: pooled.append(named["pooled"]), with_kwargs=True)
    conditions, real = values(1, 3, 6), torch.tensor([[True, False, True]])
    generator.loss(conditions, torch.rand(1, 3, 8, 4), real=real, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pooled[0], conditions[:, [0, 2]].mean(dim=1))
    generator.loss(conditions, torch.rand(1, 3, 8, 4), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pooled[1], conditions.mean(dim=1))


def test_pixels_without_an_autoencoder() -> None:
    kind, arguments = NETWORKS["sd"]
    net = DiffusersDenoiser(kind=kind, arguments=arguments | {"in_channels": 3, "out_channels": 3}).eval()
    generator = StateGenerator(network=net, sampler=sampler("sd3"), path=FlowPath(density="uniform")).eval()
    pixels = torch.rand(2, 3, 7, 5)
    torch.testing.assert_close(generator.pixels_of(generator.latents_of(pixels)), pixels)
    assert generator.sample(values(2, 3, 6), size=(7, 5)).shape == (2, 3, 7, 5)
    assert generator.loss(values(2, 3, 6), pixels).shape == (2,)


def test_the_autoencoder_is_not_trained() -> None:
    generator = generator_of("sana").train()
    assert generator.network.training and not generator.autoencoder.training
    pixels = torch.rand(1, 3, 8, 4)
    assert torch.equal(generator.latents_of(pixels), generator.latents_of(pixels))  # the mean


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sd", {"size": (8, 9)}, r"size is \(8, 9\); accepted: multiples of \(2, 2\), such as \(8, 8\)"),
        ("flux", {"size": (8, 10)}, r"size is \(8, 10\); accepted: multiples of \(4, 4\), such as \(8, 8\)"),
        ("sd3", {"size": (8, 36)}, "latents have 18 columns; accepted: multiples of 2 up to 16"),
        ("lumina2", {"conditions": torch.zeros(1, 12, 6)}, "there are 12 conditions; accepted: 1 to 11"),
        ("sana", {"conditions": torch.zeros(1, 3, 5)}, r"conditions has shape \(1, 3, 5\); accepted: \(1, M, 6\)"),
        ("sana", {"guidance": 2.0}, "unconditional is None"),
        ("sana", {"guidance": 2.0, "unconditional": torch.zeros(2, 3, 6)}, "unconditional has shape"),
        ("sana", {"guidance": 0.5}, "guidance is"),
        ("sana", {"real": torch.ones(1, 2, dtype=torch.bool)}, r"real has shape \(1, 2\); accepted: \(1, 3\)"),
        ("sana", {"real": torch.zeros(1, 3, dtype=torch.bool)}, "real has a row without any condition"),
        ("sana", {"noise": torch.zeros(1, 4, 3, 3)}, r"noise has shape \(1, 4, 3, 3\); accepted: \(1, 4, 4, 4\)"),
    ],
)
@pytest.mark.unchecked
def test_what_does_not_fit_is_refused_before_any_work(name, changes, message) -> None:
    generator = generator_of(name)
    calls: list[int] = []
    generator.network.register_forward_pre_hook(lambda *_: calls.append(1))
    generator.autoencoder.encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    arguments = {"conditions": values(1, 3, 6), "size": (8, 8)} | changes
    with pytest.raises(ValueError, match=message):
        generator.sample(**arguments)
    if {"guidance", "noise"}.isdisjoint(changes):
        size = arguments.pop("size")
        with pytest.raises(ValueError, match=message):
            generator.loss(**arguments, images=torch.rand(1, 3, *size))
    assert not calls


@pytest.mark.unchecked
def test_losses_that_do_not_fit() -> None:
    generator, conditions, pixels = generator_of("sana"), values(2, 3, 6), torch.rand(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"images have shape \(2,\); accepted: \(1,\)"):
        generator.loss(conditions[:1], pixels)
    with pytest.raises(ValueError, match=r"t lies in"):
        generator.loss(conditions, pixels, t=torch.tensor([1000, 0]))
    with pytest.raises(ValueError, match=r"t has shape \(1,\); accepted: \(2,\)"):
        generator.loss(conditions, pixels, t=torch.tensor([10]))
    with pytest.raises(ValueError, match=r"noise has shape"):
        generator.loss(conditions, pixels, noise=torch.zeros(2, 4, 4, 5))
    with pytest.raises(ValueError, match=r"latents have shape \(2, 4, 4, 3\); accepted: \(B, h, w, 4\)"):
        generator.loss(conditions, Latents(z=torch.zeros(2, 4, 4, 3)))


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("DiffusionPipeline", {}, "kind is 'DiffusionPipeline'; accepted: UNet2DConditionModel"),
        ("SD3Transformer2DModel", {"width": 3}, "unknown 'width'"),
        (
            "SanaTransformer2DModel",
            NETWORKS["sana"][1] | {"guidance_embeds": True},
            "guidance_embeds of Sana.* is True",
        ),
        ("UNet2DConditionModel", NETWORKS["sd"][1] | {"in_channels": 9}, "out_channels of UNet2DConditionModel is 4; accepted: 9"),
        ("UNet2DConditionModel", NETWORKS["sd"][1] | {"num_class_embeds": 3}, "num_class_embeds of UNet2DConditionModel is 3"),
        ("UNet2DConditionModel", NETWORKS["sd"][1] | {"cross_attention_dim": [6, 6]}, "accepted: one number"),
    ],
)
def test_networks_that_are_not_taken(kind, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusersDenoiser(kind=kind, arguments=arguments)


def test_parts_that_are_not_taken() -> None:
    parts = {"network": network("sana"), "sampler": sampler("sana")}
    with pytest.raises(ValueError, match="reads no pooled vector"):
        StateGenerator(**parts, pooled="learned")
    with pytest.raises(TypeError, match="network is a DiffusersAutoencoder, which cannot be used here"):
        StateGenerator(**(parts | {"network": autoencoder()}))
    clips = VisualTokenizer(
        encoder=torch.nn.Identity(), bottleneck=torch.nn.Identity(), decoder=torch.nn.Identity(), downsampling=(4, 8, 8)
    )
    with pytest.raises(ValueError, match=r"downsampling of autoencoder is \(4, 8, 8\)"):
        StateGenerator(**parts, autoencoder=clips)


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        ("DDPMScheduler", {}),
        ("DDIMScheduler", {"num_train_timesteps": 100, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
        ("EulerDiscreteScheduler", {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        ("UniPCMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
    ],
)
def test_paths_of_schedulers_add_their_noise(scheduler, options) -> None:
    made = getattr(diffusers, scheduler)(**options)
    sampler = DiffusersSampler(scheduler=scheduler, options=options)
    path = path_of_scheduler(scheduler, sampler.settings)
    x, noise, t = values(4, 5), values(4, 5, seed=1), torch.tensor([0, 3, 60, 99])
    torch.testing.assert_close(path.alphas_cumprod.float(), made.alphas_cumprod.float(), rtol=2e-4, atol=1e-6)
    if scheduler == "DDIMScheduler":
        torch.testing.assert_close(path.corrupt(x, noise, t), made.add_noise(x, noise, t), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(path.target(x, noise, t), made.get_velocity(x, noise, t), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        ("DDIMScheduler", {"prediction_type": "sample"}),
        ("DDIMScheduler", {"trained_betas": [0.1, 0.2]}),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
    ],
)
def test_schedulers_that_say_no_path(scheduler, options) -> None:
    generator = StateGenerator(network=network("sana"), sampler=DiffusersSampler(scheduler=scheduler, options=options))
    with pytest.raises(ValueError, match="accepted: "):
        generator.noise_path()


def test_times_that_follow_from_the_number_of_tokens() -> None:
    flux = sampler("flux")
    few, many = flux.for_tokens(2), flux.for_tokens(9)
    assert (few.mu, many.mu) == (0.5, pytest.approx(1.15)) and many.for_tokens(2) is many
    assert few.times(None)[1] < many.times(None)[1]
    plain = sampler("sd3")
    assert plain.for_tokens(9) is plain
    assert AUTOENCODER["scaling_factor"] == 0.13
