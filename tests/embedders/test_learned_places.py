"""A learned vector for each place: the same whether an image is read whole or written one vector after the other."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mmblocks import Decoder, Generation, LMHead, MultimodalModel, TextEmbedding, text, vectors
from mmblocks.embedders import LearnedPlaces
from mmblocks.generation import VectorBlock, VectorGrammar
from mmblocks.heads import RegressionHead

DIM, BEGIN, END = 32, 7, 8


def a_model() -> MultimodalModel:
    torch.manual_seed(0)
    latents = LearnedPlaces(embedder=nn.Linear(4, DIM), dim=DIM, size=(3, 3), init_std=1.0)
    return MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=16, dim=DIM), "latents": latents},
        trunk=Decoder(dim=DIM, num_layers=1, num_heads=4, mlp_dim=48),
        outputs={"text": LMHead(dim=DIM, vocab_size=16), "image": RegressionHead(dim=DIM, target_dim=4)},
    ).eval()


def test_each_value_has_the_vector_of_its_row_and_column() -> None:
    model = a_model()
    places, linear = model.inputs["latents"].places, model.inputs["latents"].embedder
    images = [torch.randn(2, 3, 4), torch.randn(3, 1, 4)]
    samples = [[text([1]), vectors(image, input="latents"), text([2])] for image in images]
    batch = model.batch_builder()(samples, pack=16)
    found = model.embed(batch)[0, batch.inputs["latents"].places]
    wanted = [(linear(image) + places[: image.shape[0], : image.shape[1]]).flatten(0, 1) for image in images]
    assert_close(found, torch.cat(wanted))
    shuffled = vectors(images[0], input="latents", order=torch.tensor([5, 0, 1, 2, 3, 4]))
    first = model.embed(model.batch_builder()([[shuffled]]))[0, 0]
    assert_close(first, linear(images[0][1, 2]) + places[1, 2])


def test_vectors_that_are_written_one_by_one_are_told_their_places() -> None:
    """Two rows, one of which is still in text: the predictions are those of the whole rows read anew."""
    model = a_model()
    block = VectorBlock(begin=BEGIN, end=END, size=(2, 3), head="image", input="latents")
    prompts = [[text([1, 2, BEGIN])], [text([3, 4, 5, BEGIN])]]
    made = dict(model.generate(prompts, VectorGrammar(block, vocab_size=16), Generation(generator=0)))
    for row, prompt in enumerate(prompts):
        batch = model.batch_builder()([[*prompt, vectors(made[row].values, input="latents", target="image")]])
        states = model.hidden(batch).flatten(0, 1)[batch.targets["image"].places]
        assert_close(model.outputs["image"].sample(states), made[row].values.flatten(0, 1), rtol=1e-5, atol=1e-5)


def test_errors() -> None:
    with pytest.raises(ValueError, match="size is \\(4,\\); accepted"):
        LearnedPlaces(embedder=nn.Identity(), dim=4, size=(4,))
    placed = LearnedPlaces(embedder=nn.Identity(), dim=4, size=(2, 2))
    with pytest.raises(ValueError, match="h "):
        placed.at(torch.zeros(1, 4), torch.tensor([[0, 2, 0]]))
    with pytest.raises(TypeError, match="called without places"):
        placed(torch.zeros(1, 4))
