import pytest
import torch

from mmblocks import Block, TextEmbedding
from mmblocks.layers.soft_codes import SoftCodeEmbedding


def soft(**options) -> SoftCodeEmbedding:
    torch.manual_seed(0)
    return SoftCodeEmbedding(num_codes=20, code_dim=6, **options)


def test_mixes_embeddings_by_distance() -> None:
    embedding = soft(dim=8)
    latents = torch.randn(2, 5, 6, requires_grad=True)
    weights = (-torch.cdist(latents, embedding.codes).square()).softmax(dim=-1)
    torch.testing.assert_close(embedding.weights(latents), weights)
    torch.testing.assert_close(embedding(latents), weights @ embedding.embeddings)
    wanted = torch.autograd.grad((weights @ embedding.embeddings).square().sum(), (embedding.codes, latents), retain_graph=True)
    given = torch.autograd.grad(embedding(latents).square().sum(), (embedding.codes, latents))
    for got, want in zip(given, wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_many_latents_are_mixed_in_pieces() -> None:
    embedding = soft(dim=8)
    latents = torch.randn(3000, 6)
    torch.testing.assert_close(embedding(latents), embedding.weights(latents) @ embedding.embeddings)
    assert embedding(latents[:0]).shape == (0, 8)


def test_a_latent_that_is_a_code_reads_as_its_token_in_a_shared_table(tmp_path) -> None:
    text = TextEmbedding(vocab_size=40, dim=8)
    embedding = soft(table=text, first=4)
    far_apart = 20 * torch.randn(20, 6)
    embedding.load_state_dict({"codes": far_apart, "table.weight": text.weight})
    torch.testing.assert_close(embedding(far_apart[[0, 19]]), text(torch.tensor([4, 23])))
    embedding(far_apart).sum().backward()
    assert text.weight.grad[4:24].abs().sum() > 0 and text.weight.grad[:4].abs().sum() == 0

    embedding.save_pretrained(tmp_path)
    latents = torch.randn(3, 6)
    assert torch.equal(Block.from_pretrained(tmp_path)(latents), embedding(latents))


def test_bfloat16_weighs_in_float32() -> None:
    embedding = soft(dim=8).bfloat16()
    assert embedding.weights(torch.randn(3, 6).bfloat16()).dtype == torch.float32
    assert embedding(torch.randn(3, 6).bfloat16()).dtype == torch.bfloat16


def test_what_does_not_fit_is_refused() -> None:
    text = TextEmbedding(vocab_size=22, dim=8)
    for options in ({}, {"dim": 8, "table": text}):
        with pytest.raises(ValueError, match="accepted: one of them, the other None"):
            soft(**options)
    with pytest.raises(ValueError, match="table has 22 rows; accepted: at least 24"):
        soft(table=text, first=4)
