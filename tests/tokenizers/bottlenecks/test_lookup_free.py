import pytest
import torch

from mmblocks import Block
from mmblocks.tokenizers.bottlenecks.lookup_free import LookupFreeQuantizer


def features(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("arguments", "dim", "sizes"),
    [
        ({"bits": (10,)}, 10, (1024,)),
        ({"bits": (10,), "first_bit": "most", "scale": 0.5}, 10, (1024,)),
        ({"bits": (4, 6), "dim": 7}, 7, (16, 64)),
        ({"bits": (5, 5), "spherical": True, "joint_entropy": False}, 10, (32, 32)),
        ({"bits": (40,), "soft_clamp": 2.0}, 40, (2**40,)),
    ],
)
def test_ids_look_up_what_was_quantised(arguments, dim, sizes) -> None:
    quantizer = LookupFreeQuantizer(**arguments).eval()
    latents = quantizer(features(2, 3, 5, dim))
    assert quantizer.codebook_sizes == sizes and latents.loss is None
    assert latents.ids.shape == (2, 3, 5) if len(sizes) == 1 else (2, 3, 5, len(sizes))
    torch.testing.assert_close(quantizer.lookup(latents.ids), latents.z)


def test_the_order_of_the_bits() -> None:
    x = torch.tensor([[[0.3, -0.1, -2.0]]])
    assert LookupFreeQuantizer(bits=(3,))(x).ids.item() == 0b001
    assert LookupFreeQuantizer(bits=(3,), first_bit="most")(x).ids.item() == 0b100
    assert LookupFreeQuantizer(bits=(1, 2))(x).ids.tolist() == [[[1, 0]]]


def test_sub_ids_are_parts_of_one_code() -> None:
    x = features(2, 6, 10)
    one, two = LookupFreeQuantizer(bits=(10,)).train(), LookupFreeQuantizer(bits=(4, 6)).train()
    assert torch.equal(one(x).z, two(x).z)
    assert torch.equal(one(x).ids, two(x).ids[..., 0] + 16 * two(x).ids[..., 1])
    assert one(x).loss == two(x).loss


def test_gradients_pass_straight_through_and_reach_the_projections() -> None:
    x = features(2, 4, 7).requires_grad_()
    quantizer = LookupFreeQuantizer(bits=(5,), dim=7)
    latents = quantizer(x)
    (latents.z.sum() + sum(latents.loss.values())).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in quantizer.parameters())
    plain, upstream = LookupFreeQuantizer(bits=(7,)), torch.randn(2, 4, 7)
    (passed,) = torch.autograd.grad((plain(x).z * upstream).sum(), x)
    assert torch.equal(passed, upstream)


def test_bfloat16_has_the_bits_and_entropies_of_float32() -> None:
    x = features(2, 4, 9).bfloat16()
    half, full = LookupFreeQuantizer(bits=(9,)).bfloat16()(x), LookupFreeQuantizer(bits=(9,))(x.float())
    assert half.z.dtype == torch.bfloat16 and torch.equal(half.ids, full.ids)
    assert half.loss["codebook_entropy"] == full.loss["codebook_entropy"]


def test_saved_and_loaded(tmp_path) -> None:
    quantizer = LookupFreeQuantizer(bits=(3, 4), dim=5).eval()
    quantizer.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    assert again.config == quantizer.config
    torch.testing.assert_close(again(features(1, 2, 5)).z, quantizer(features(1, 2, 5)).z)


@pytest.mark.unchecked
def test_bad_input_is_refused() -> None:
    quantizer = LookupFreeQuantizer(bits=(3, 4))
    with pytest.raises(ValueError, match="features are 6 wide; accepted: 7"):
        quantizer(torch.zeros(1, 2, 6))
    with pytest.raises(ValueError, match="NaN"):
        quantizer(torch.full((1, 2, 7), torch.nan))
    with pytest.raises(ValueError, match=r"accepted: \[0, 7\]"):
        quantizer.lookup(torch.tensor([[8, 0]]))
    with pytest.raises(ValueError, match="2 numbers a token"):
        quantizer.lookup(torch.tensor([[1, 0, 0]]))
    with pytest.raises(TypeError, match="integers"):
        LookupFreeQuantizer(bits=(3,)).lookup(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="from 1 to 62"):
        LookupFreeQuantizer(bits=(63,))
    with pytest.raises(ValueError, match="accepted: least, most"):
        LookupFreeQuantizer(bits=(3,), first_bit="last")
    with pytest.raises(ValueError, match="orthogonal_rotation is True; accepted: False"):
        LookupFreeQuantizer.layouts[0].arguments({"dim": 3, "orthogonal_rotation": True})


@pytest.mark.unchecked
def test_compiles_to_one_graph() -> None:
    quantizer, x = LookupFreeQuantizer(bits=(6,)), features(2, 5, 6)
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled.loss, quantizer(x).loss)


def test_options_of_the_library_are_taken_or_refused() -> None:
    from vector_quantize_pytorch import LFQ

    arguments = LookupFreeQuantizer.layouts[0].arguments
    plain = {"dim": 8, "codebook_size": 64}
    defaults = {"entropy_loss_offset": 5.0, "frac_per_sample_entropy": 1.0, "has_projections": True, "force_quantization_f32": True}
    assert arguments({**plain, **defaults}) == arguments(plain)
    for option in ({"frac_per_sample_entropy": 0.5}, {"force_quantization_f32": False}, {"has_projections": False}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} is .*; accepted: "):
            arguments({**plain, **option})

    theirs = LFQ(**plain, projection_has_bias=False).eval()
    ours = LookupFreeQuantizer(**arguments({**plain, "projection_has_bias": False})).eval()
    ours.load_state_dict(dict(ours.layouts[0].convert(theirs.state_dict(), ours.config)))
    x = torch.randn(2, 9, 8)
    torch.testing.assert_close(ours(x).z, theirs(x)[0])


@pytest.mark.parametrize("options", [{}, {"joint_entropy": False, "floor": "clamp", "dim": 5}])
def test_no_feature_costs_nothing(options) -> None:
    quantizer = LookupFreeQuantizer(bits=(3, 4), **options).train()
    latents = quantizer(torch.zeros(0, 2, quantizer.dim, requires_grad=True))
    assert {name: value.item() for name, value in latents.loss.items()} == dict.fromkeys(
        ("commitment", "sample_entropy", "codebook_entropy"), 0.0
    )
    sum(latents.loss.values()).backward()
