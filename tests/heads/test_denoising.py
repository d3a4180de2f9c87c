from copy import deepcopy

import pytest
import torch

from mmblocks import Block
from mmblocks.heads import DenoisingHead, MARDiffusionHead, NOVAFlowHead, OrthusDiffusionHead
from mmblocks.layers.diffusion.adaln_mlp import AdaLNMLP, TokenDenoiser
from mmblocks.layers.diffusion.denoising_guidance import LinearGuidance
from mmblocks.layers.diffusion.denoising_samplers import AncestralSampler, DiffusersSampler, TokenSampler
from mmblocks.layers.diffusion.noise_paths import DiffusionPath, FlowPath, NoisePath
from mmblocks.ops import arithmetic

DIM = 10


def mar() -> MARDiffusionHead:
    return MARDiffusionHead(dim=DIM, token_dim=3, width=16, num_blocks=2, steps=4, repeats=2)


def orthus() -> OrthusDiffusionHead:
    return OrthusDiffusionHead(dim=DIM, token_dim=3, width=16, num_blocks=1, repeats=2, num_steps=4)


def nova() -> NOVAFlowHead:
    return NOVAFlowHead(dim=DIM, channels=3, patch_size=1, width=16, num_blocks=1, num_steps=4, repeats=2)


def flow() -> DenoisingHead:
    net = AdaLNMLP(dim=3, condition_dim=DIM, width=16, num_blocks=1)
    sampler = DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=3)
    return DenoisingHead(net=net, path=FlowPath(density="uniform"), sampler=sampler)


HEADS = [mar, orthus, nova, flow]


def stirred(head: Block) -> Block:
    """With no weight at zero, where gates keep gradients from what is after them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return head


@pytest.mark.parametrize("build", HEADS)
def test_parts_play_their_roles(build) -> None:
    head = build()
    assert isinstance(head.net, TokenDenoiser) and isinstance(head.path, NoisePath) and isinstance(head.sampler, TokenSampler)


@pytest.mark.parametrize("build", HEADS)
@pytest.mark.parametrize("rows", [1, 5])
def test_loss_reaches_every_parameter_and_draws_can_be_handed_in(build, rows) -> None:
    torch.manual_seed(0)
    head = stirred(build())
    hidden, target = torch.randn(rows, DIM, requires_grad=True), torch.randn(rows, 3)
    t, noise = torch.randint(1000, (rows * head.repeats,)), torch.randn(rows * head.repeats, 3)
    losses = head.loss(hidden, target, t=t, noise=noise)
    assert losses.shape == (rows,) and losses.dtype == torch.float32
    assert torch.equal(losses, head.loss(hidden, target, t=t, noise=noise))
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    assert torch.equal(*(head.loss(hidden, target, generator=generator) for generator in generators))
    losses.mean().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert hidden.grad is not None and hidden.grad.any()


def test_loss_is_the_mean_over_repeats() -> None:
    head = stirred(mar())
    once = MARDiffusionHead(**{**head.config, "repeats": 1})
    once.load_state_dict(head.state_dict())
    hidden, target, t, noise = torch.randn(4, DIM), torch.randn(4, 3), torch.randint(1000, (8,)), torch.randn(8, 3)
    halves = [once.loss(hidden, target, t=t[half], noise=noise[half]) for half in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(head.loss(hidden, target, t=t, noise=noise), (halves[0] + halves[1]) / 2)


@pytest.mark.parametrize("build", HEADS)
def test_weights_of_zero_give_no_loss_and_no_gradients(build) -> None:
    head = stirred(build())
    loss = head.loss(torch.randn(4, DIM), torch.randn(4, 3), torch.zeros(4)).sum()
    loss.backward()
    assert loss == 0
    assert all(not parameter.grad.any() for parameter in head.parameters())
    assert head.loss(torch.randn(0, DIM), torch.randn(0, 3)).shape == (0,)


@pytest.mark.parametrize("build", HEADS)
def test_samples_follow_their_draws(build) -> None:
    torch.manual_seed(0)
    head = stirred(build())
    hidden, noise = torch.randn(2, 3, DIM), torch.randn(2, 3, 3)
    given = {"step_noise": torch.randn(4, 2, 3, 3)} if build is mar else {}
    sampled = head.sample(hidden, noise=noise, **given)
    assert sampled.shape == (2, 3, 3) and sampled.isfinite().all()
    flat = {name: draw.flatten(1, 2) for name, draw in given.items()}
    torch.testing.assert_close(sampled.flatten(0, 1), head.sample(hidden.flatten(0, 1), noise=noise.flatten(0, 1), **flat))
    one, same = (head.sample(hidden, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, same)


@pytest.mark.parametrize("build", HEADS)
def test_guidance_of_one_is_no_guidance(build) -> None:
    head = stirred(build())
    hidden, other, noise = torch.randn(2, DIM), torch.randn(2, DIM), torch.randn(2, 3)
    given = {"noise": noise, "step_noise": torch.zeros(4, 2, 3)} if build is mar else {"noise": noise}
    plain = head.sample(hidden, **given)
    torch.testing.assert_close(head.sample(hidden, unconditional=other, guidance=1.0, **given), plain)
    assert not torch.allclose(head.sample(hidden, unconditional=other, guidance=3.0, **given), plain)
    both = head.sample(hidden, unconditional=(hidden, other), guidance=(2.0, 3.0), **given)
    torch.testing.assert_close(both, head.sample(hidden, unconditional=other, guidance=3.0, **given), rtol=1e-3, atol=1e-3)


def test_half_precision() -> None:
    for build in HEADS:
        head = stirred(build()).bfloat16()
        hidden = torch.randn(3, DIM).bfloat16()
        loss = head.loss(hidden, torch.randn(3, 3))
        assert loss.dtype == torch.float32 and loss.isfinite().all()
        assert head.sample(hidden).isfinite().all()


@pytest.mark.parametrize(("rows", "widened"), [(2, False), (9, True)])
def test_many_rows_are_sampled_in_float32_where_bfloat16_is_emulated(rows, widened, monkeypatch) -> None:
    monkeypatch.setattr(arithmetic, "_EMULATED", {torch.bfloat16})
    torch.manual_seed(0)
    head = stirred(orthus()).bfloat16()
    exact = deepcopy(head).float()
    hidden, noise = torch.randn(rows, DIM).bfloat16(), torch.randn(rows, 3)
    found, wanted = head.sample(hidden, noise=noise), exact.sample(hidden.float(), noise=noise)
    assert torch.equal(found, wanted) == widened
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05 * float(wanted.abs().max()))
    assert head.net.output.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("build", HEADS)
def test_saved_heads_come_back(build, tmp_path) -> None:
    head = stirred(build())
    head.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    assert type(again) is type(head)
    hidden, target = torch.randn(3, DIM), torch.randn(3, 3)
    count = 3 * head.repeats
    t, noise = torch.randint(1000, (count,)), torch.randn(count, 3)
    assert torch.equal(again.loss(hidden, target, t=t, noise=noise), head.loss(hidden, target, t=t, noise=noise))


@pytest.mark.unchecked
def test_bad_input_is_refused() -> None:
    head = mar()
    hidden, target = torch.randn(2, DIM), torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"target has shape \(2, 4\); accepted: \(2, 3\)"):
        head.loss(hidden, torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"weight has shape \(3,\)"):
        head.loss(hidden, target, torch.ones(3))
    with pytest.raises(ValueError, match=r"t has shape \(2,\); accepted: \(4,\)"):
        head.loss(hidden, target, t=torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"t lies in \[0, 1000\]; accepted: \[0, 999\]"):
        head.loss(hidden, target, t=torch.tensor([0, 1, 2, 1000]))
    with pytest.raises(ValueError, match="whole numbers from 0 to 999"):
        head.loss(hidden, target, t=torch.rand(4))
    with pytest.raises(ValueError, match=r"noise has shape \(2, 3\); accepted: \(4, 3\)"):
        head.loss(hidden, target, noise=torch.randn(2, 3))
    with pytest.raises(ValueError, match="target holds NaN"):
        head.loss(hidden, target * float("nan"))
    with pytest.raises(ValueError, match=r"step_noise has shape \(2, 2, 3\); accepted: \(4, 2, 3\)"):
        head.sample(hidden, step_noise=torch.randn(2, 2, 3))
    with pytest.raises(ValueError, match=r"guidance is \(0.5,\); accepted: 1"):
        head.sample(hidden, unconditional=hidden, guidance=0.5)
    with pytest.raises(ValueError, match="guidance and unconditional go together"):
        head.sample(hidden, guidance=2.0)
    with pytest.raises(ValueError, match="has 1 scales for 3 streams"):
        head.sample(hidden, unconditional=(hidden, hidden), guidance=2.0)
    with pytest.raises(ValueError, match="ancestral sampling accepts 'noise'"):
        orthus().sample(hidden, sampler=AncestralSampler(steps=3))
    with pytest.raises(ValueError, match="step_noise was given"):
        orthus().sample(hidden, step_noise=torch.randn(4, 2, 3))
    with pytest.raises(ValueError, match="the name of a scheduler of diffusers"):
        orthus().sample(hidden, sampler=DiffusersSampler(scheduler="NoSuchScheduler"))
    for wrong in ({"repeats": 0}, {"scale": 0.0}):
        with pytest.raises(ValueError, match="1 or more repeats"):
            DenoisingHead(net=head.net, path=DiffusionPath(), sampler=head.sampler, **wrong)


def test_guidance_can_be_left_off_and_shortened() -> None:
    more, less = torch.randn(4, 3), torch.randn(4, 3)
    assert torch.equal(LinearGuidance(below=500)([more, less], (4.0,), 499.0), more)
    guided = LinearGuidance(renorm=0.0)([more, less], (4.0,), 600.0)
    plain = LinearGuidance()([more, less], (4.0,))
    torch.testing.assert_close(guided.norm(dim=1), torch.minimum(plain.norm(dim=1), more.norm(dim=1)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("net", r"net is a FlowPath, which cannot be used here: it has no embed_time\(time\); .*See mmblocks\.layers\.diffusion"),
        ("path", r"path is a LinearGuidance, .*it has no sample_times\("),
        ("sampler", r"sampler is a LinearGuidance, .*it has no times\(path\); it has no sample\(predict, x, path, \*, temperature"),
        ("guidance", r"guidance is a FlowPath, .*it has no forward\(streams, scales, time=None\)"),
    ],
)
def test_parts_that_lack_a_method_are_refused_by_name(name: str, message: str) -> None:
    parts = {
        "net": AdaLNMLP(dim=3, condition_dim=4, width=8, num_blocks=1),
        "path": FlowPath(),
        "sampler": DiffusersSampler(scheduler="FlowMatchEulerDiscreteScheduler", num_steps=2),
    }
    wrong = {"net": FlowPath(), "guidance": FlowPath()}.get(name, LinearGuidance())
    with pytest.raises(TypeError, match=message):
        DenoisingHead(**parts | {name: wrong})
