import pytest
import torch
from torch.nn.functional import normalize

from mmblocks.training.contrastive import clip_loss
from mmblocks.training.declip import TextMemory, multi_view_loss, nearest_neighbour_loss, self_supervision_loss

SCALE = torch.tensor(8.0)


def embeddings(number: int, count: int = 4) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [normalize(torch.randn(count, 6), dim=-1).requires_grad_() for _ in range(number)]


def test_self_supervision_pulls_the_predictions_alone() -> None:
    first, second, one, other = embeddings(4)
    loss = self_supervision_loss((first, second), (one, other))
    torch.testing.assert_close(loss, -((first * other).sum(1).mean() + (second * one).sum(1).mean()) / 2)
    loss.backward()
    assert first.grad.abs().sum() > 0 and second.grad.abs().sum() > 0 and one.grad is None and other.grad is None
    torch.testing.assert_close(self_supervision_loss((first, 3 * first), (first, first)), torch.tensor(-1.0))


def test_views_are_compared_but_for_the_first_pair() -> None:
    image, turned, text, reworded = embeddings(4)
    loss = multi_view_loss((image, turned), (text, reworded), SCALE)
    pairs = ((image, reworded), (turned, text), (turned, reworded))
    torch.testing.assert_close(loss, sum(clip_loss(*pair, SCALE).loss for pair in pairs) / 3)
    torch.testing.assert_close(multi_view_loss((image, turned), (text,), SCALE), clip_loss(turned, text, SCALE).loss)


def test_the_most_similar_text_takes_the_place() -> None:
    image, text, seen = embeddings(3)
    memory = TextMemory(dim=6, size=10)
    assert nearest_neighbour_loss(image, seen, SCALE, memory) == 0 and memory.count == 4
    wanted = seen[(text @ seen.T).argmax(1)]
    loss = nearest_neighbour_loss(image, text, SCALE, memory)
    torch.testing.assert_close(loss, clip_loss(image, wanted, SCALE).loss)
    loss.backward()
    assert image.grad.abs().sum() > 0 and text.grad is None
    torch.testing.assert_close(memory.texts[:8], torch.cat([seen, text]))
    with torch.no_grad():
        nearest_neighbour_loss(image, text, SCALE, memory)
    assert memory.count == 8


def test_the_oldest_texts_are_forgotten() -> None:
    memory, texts = TextMemory(dim=6, size=5), embeddings(3, count=3)
    for text in texts:
        memory.remember(text)
    torch.testing.assert_close(memory.texts, torch.cat(texts)[-5:])
    many = embeddings(1, count=7)[0]
    memory.remember(many)
    torch.testing.assert_close(memory.texts, many[-5:])
    again = TextMemory(dim=6, size=5)
    again.load_state_dict(memory.state_dict())
    torch.testing.assert_close(again(many[-2:]), many[-2:])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda one: self_supervision_loss((one,), (one,)), "1 and 1 views .* accepted: two of each"),
        (lambda one: self_supervision_loss((one, one), (one, one[:2])), "all of one shape"),
        (lambda one: multi_view_loss((one,), (one,), SCALE), "1 views of images and 1 of texts; accepted: a second one"),
        (lambda one: TextMemory(dim=6)(one), "no text is remembered yet"),
        (lambda one: TextMemory(dim=6, size=0), "size is 0; accepted: at least 1"),
    ],
)
@pytest.mark.unchecked
def test_what_does_not_fit_is_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(embeddings(1)[0])
