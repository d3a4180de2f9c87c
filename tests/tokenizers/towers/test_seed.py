import pytest
import torch
from PIL import Image
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from mmblocks import Block
from mmblocks.layers.attention.query_transformer import QFormer
from mmblocks.layers.towers.eva import EvaTower
from mmblocks.tokenizers.towers.seed import SEEDTokenizer

SIZE = (28, 42)
BLIP2_NAMES = {
    "encoder.layer.": "layers.",
    "crossattention.": "cross_attention.",
    "attention.output.dense.": "attention.attention.out.",
    "attention.output.LayerNorm.": "attention.norm.",
    "intermediate_query.dense.": "up.",
    "output_query.dense.": "down.",
    "output_query.LayerNorm.": "norm.",
    "layernorm.": "norm.",
}


def tokenizer(**options) -> SEEDTokenizer:
    torch.manual_seed(0)
    tower = EvaTower(image_size=SIZE, patch_size=14, dim=16, num_layers=1, num_heads=2, mlp_dim=20)
    sizes = {"num_codes": 11, "code_dim": 4, "num_queries": 5, "dim": 24, "num_layers": 3, "num_heads": 2, "mlp_dim": 20}
    decoder = {"decoder_layers": 1, "decoder_heads": 2, "embed_dim": 9}
    seed = SEEDTokenizer(encoder=tower, encoder_dim=16, image_size=SIZE, **(sizes | decoder | options))
    for parameter in seed.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return seed


@pytest.mark.parametrize("head", ["mlp", "qformer"])
@pytest.mark.parametrize("batch", [1, 3])
def test_codes_decode_to_what_the_latents_decode_to(head, batch) -> None:
    seed = tokenizer(head=head).eval()
    latents = seed.encode(torch.rand(batch, 3, *SIZE))
    assert latents.ids.shape == (batch, 5) and latents.loss is None and seed.codebook_sizes == (11,)
    embeds = seed.decode(latents.ids)
    assert embeds.shape == (batch, 9)
    torch.testing.assert_close(embeds, seed.decode(latents), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
def test_queries_see_those_before_them(causal) -> None:
    seed = tokenizer(causal=causal).eval()
    qformer = seed.bottleneck.qformer
    context = torch.randn(1, 7, 16)
    (gradient,) = torch.autograd.grad(qformer(context)[:, 2].square().sum(), qformer.queries)
    assert bool(gradient[0, :3].abs().amin(-1).gt(0).all())
    assert bool(gradient[0, 3:].abs().amax(-1).gt(0).any()) is not causal


def test_qformer_is_that_of_blip2() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 20}
    theirs = Blip2QFormerModel(Blip2QFormerConfig(encoder_hidden_size=16, use_qformer_text_input=False, **sizes)).eval()
    ours = QFormer(num_queries=5, dim=24, context_dim=16, num_layers=3, num_heads=2, mlp_dim=20)
    renamed = {}
    for name, tensor in theirs.state_dict().items():
        for key, own in BLIP2_NAMES.items():
            name = name.replace(key, own)
        renamed[name] = tensor
    ours.load_state_dict(renamed | {"queries": ours.queries.data})
    context = torch.randn(2, 7, 16)
    wanted = theirs(query_embeds=ours.queries.expand(2, -1, -1), encoder_hidden_states=context).last_hidden_state
    torch.testing.assert_close(ours(context), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", ["mlp", "qformer"])
def test_training_reaches_every_parameter(head) -> None:
    seed = tokenizer(head=head).train()
    latents = seed.encode(torch.rand(2, 3, *SIZE))
    losses = seed.training_losses(latents, torch.randn(2, 9))
    assert losses.keys() == seed.loss_weights.keys()
    sum(weight * losses[name] for name, weight in seed.loss_weights.items()).backward()
    still = [name for name, parameter in seed.named_parameters() if not parameter.grad.any()]
    # The same bias for all keys changes nothing, and one query alone has nothing to compare.
    effective = [name for name in still if not name.endswith("key.bias") and "head.qformer.layers" not in name]
    assert not effective
    with pytest.raises(ValueError, match="those of encode"):
        seed.training_losses(seed.eval().encode(torch.rand(1, 3, *SIZE)), torch.randn(1, 9))


def test_features_loss_asks_nothing_of_its_target() -> None:
    seed = tokenizer().train()
    latents = seed.encode(torch.rand(1, 3, *SIZE))
    latents = latents._replace(z=latents.z.detach())
    seed.training_losses(latents, torch.randn(1, 9))["features"].backward()
    assert seed.bottleneck.qformer.queries.grad is None


def test_saved_and_loaded_also_in_bfloat16(tmp_path) -> None:
    seed = tokenizer(head="qformer").eval()
    seed.save_pretrained(tmp_path / "seed")
    pixels = torch.rand(2, 3, *SIZE)
    again = Block.from_pretrained(tmp_path / "seed")
    assert torch.equal(again.decode(again.encode(pixels)), seed.decode(seed.encode(pixels)))
    halved = Block.from_pretrained(tmp_path / "seed", dtype=torch.bfloat16)
    assert halved.decode(halved.encode(pixels.bfloat16())).dtype == torch.bfloat16


def test_images_are_squashed() -> None:
    image = Image.new("L", (91, 33), 255)
    assert torch.equal(tokenizer().preprocess(image), torch.ones(3, *SIZE))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda seed: seed.encode(torch.rand(1, 3, 28, 28)), ValueError, "pixels are 28x28; accepted: 28x42"),
        (lambda seed: seed.encode(torch.zeros(1, 3, *SIZE, dtype=torch.uint8)), TypeError, "uint8"),
        (lambda seed: seed.encode(torch.full((1, 3, *SIZE), float("nan"))), ValueError, "nan"),
        (lambda seed: seed.decode(torch.full((1, 5), 11)), ValueError, r"accepted: \[0, 10\]"),
        (lambda seed: seed.decode(torch.zeros(1, 4, dtype=torch.long)), ValueError, r"accepted: \(B, 5, 4\)"),
        (lambda seed: tokenizer(head="cnn"), ValueError, "head is 'cnn'"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call(tokenizer().eval())
