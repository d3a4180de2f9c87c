import copy

import pytest
import torch

from mmblocks import Block
from mmblocks.encoders.eva_clip import EVACLIP

VISION = {
    "tower": {"image_size": (28, 28), "patch_size": 14, "dim": 24, "num_layers": 1, "num_heads": 2, "mlp_dim": 37},
    "embed_dim": 10,
}
TEXT = {"embed_dim": 10, "dim": 24, "num_layers": 1, "num_heads": 2, "context_length": 12}


@pytest.fixture(scope="module")
def built() -> EVACLIP:
    torch.manual_seed(0)
    return EVACLIP(vision=VISION, text=TEXT).eval()


@pytest.fixture
def clip(built) -> EVACLIP:
    return copy.deepcopy(built)


def test_similarities(clip, tmp_path) -> None:
    pixels, texts = torch.rand(3, 3, 28, 28), ["a cat", "two dogs"]
    image, text = clip.encode_image(pixels), clip.encode_text(texts)
    torch.testing.assert_close(image.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(text.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(clip.similarity(image, text), image @ text.T / 0.07)
    embeddings = clip(pixels[:2], clip.text.tokenize(texts))
    torch.testing.assert_close(embeddings.image, image[:2])
    torch.testing.assert_close(embeddings.text, text)
    clip.similarity(image, text)[0, 0].backward()
    assert all(parameter.grad is not None for parameter in clip.parameters())
    clip.save_pretrained(tmp_path / "clip")
    torch.testing.assert_close(Block.from_pretrained(tmp_path / "clip").encode_image(pixels), image)
    assert Block.from_pretrained(tmp_path / "clip", dtype=torch.bfloat16).encode_image(pixels).dtype == torch.bfloat16


def test_classes_without_training(clip) -> None:
    templates = ("a photo of a {}.", "a {{}}, drawn: {}")
    classifier = clip.classifier(["cat", "dog", "owl"], templates)
    cat = clip.encode_text(["a photo of a cat.", "a {cat}, drawn: cat"]).mean(dim=0)
    torch.testing.assert_close(classifier[0], cat / cat.norm())
    pixels = torch.rand(2, 3, 28, 28)
    shares = clip.classify(pixels, classifier)
    torch.testing.assert_close(shares, (clip.encode_image(pixels) @ classifier.T / 0.07).softmax(-1))


def test_images_of_another_size(clip, tmp_path) -> None:
    larger = clip.resized((42, 28))
    pixels = torch.rand(1, 3, 42, 28)
    assert larger.encode_image(pixels).shape == (1, 10)
    assert larger.text.model.text_projection is clip.text.model.text_projection
    larger.save_pretrained(tmp_path / "larger")
    torch.testing.assert_close(Block.from_pretrained(tmp_path / "larger").encode_image(pixels), larger.encode_image(pixels))
    torch.testing.assert_close(larger.encode_text("a cat"), clip.encode_text("a cat"))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda clip: EVACLIP(vision=VISION, text=TEXT | {"embed_dim": 9}), "embed_dim is 10 of images and 9 of texts"),
        (lambda clip: clip.classifier("cat"), "accepted: a list of at least one name"),
        (lambda clip: clip.classifier([]), "accepted: a list of at least one name"),
        (lambda clip: clip.classifier(["cat"], ["a photo"]), "each with {} where the name stands"),
        (lambda clip: clip.encode_text(""), "none that is empty"),
    ],
)
def test_what_does_not_fit_is_refused(clip, call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(clip)
