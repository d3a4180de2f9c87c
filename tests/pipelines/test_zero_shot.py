"""Pictures named and found by texts: what CLIP's similarities say, whatever form pictures come in and however they are batched."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmblocks import ZeroShot
from mmblocks.encoders import EVACLIP
from mmblocks.pipelines import zero_shot

TOWER = {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "image_size": (28, 28), "patch_size": 14}
TEXT = {"embed_dim": 8, "dim": 16, "num_layers": 1, "num_heads": 2}
LABELS = ["cat", "dog", "red car"]


def clip() -> EVACLIP:
    torch.manual_seed(0)
    return EVACLIP(vision={"tower": TOWER, "embed_dim": 8}, text=TEXT).eval()


def pictures() -> list[Image.Image]:
    generator = torch.Generator().manual_seed(1)
    sizes = [(40, 30), (17, 55), (28, 28)]
    return [Image.fromarray(torch.randint(256, (h, w, 3), generator=generator, dtype=torch.uint8).numpy()) for w, h in sizes]


@torch.no_grad()
def test_labels_have_the_probabilities_of_scaled_cosines() -> None:
    model, shown = clip(), pictures()
    templates = ["a photo of a {}.", "one {}"]
    found = ZeroShot(model, batch_size=2).classify(shown, LABELS, templates=templates)
    for picture, scores in zip(shown, found, strict=True):
        image = model.vision.embed(model.preprocess(picture)[None])[0]
        classes = [torch.stack([model.encode_text(one.format(name))[0] for one in templates]).mean(dim=0) for name in LABELS]
        cosines = torch.stack([torch.cosine_similarity(image, one, dim=0) for one in classes])
        wanted = (model.logit_scale.exp() * cosines).softmax(dim=0).tolist()
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
        assert scores == pytest.approx(dict(zip(LABELS, wanted, strict=True)), abs=1e-5)


def test_pictures_in_any_form_and_batch_are_the_same(tmp_path: Path) -> None:
    model, shown = clip(), pictures()
    file = tmp_path / "picture.png"
    shown[0].save(file)
    forms = [file, str(file), file.read_bytes(), torch.frombuffer(bytearray(shown[0].tobytes()), dtype=torch.uint8).view(30, 40, 3)]
    one = ZeroShot(model, batch_size=1).similarity(shown[:1], LABELS)
    assert one.shape == (1, 3) and one.abs().max() <= 1
    many = ZeroShot(model, batch_size=3).similarity(forms, LABELS)
    torch.testing.assert_close(many, one.expand(4, 3), atol=1e-5, rtol=1e-5)


def test_a_search_gives_the_most_similar_first() -> None:
    finder, shown = ZeroShot(clip(), batch_size=2), pictures()
    cosines = finder.similarity(shown, ["two cats"])[:, 0]
    found = finder.search(shown, "two cats", top=2)
    assert [match.place for match in found] == cosines.argsort(descending=True)[:2].tolist()
    assert [match.similarity for match in found] == pytest.approx(cosines.sort(descending=True).values[:2].tolist(), abs=1e-6)
    assert len(finder.search(shown[:1], "two cats", top=9)) == 1


def test_half_precision_names_the_same_pictures() -> None:
    finder = ZeroShot(clip().to(torch.bfloat16))
    scores = finder.classify(pictures(), LABELS)
    assert all(sum(row.values()) == pytest.approx(1, abs=1e-3) for row in scores)


def test_the_name_of_an_official_file_says_its_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = clip()
    file = tmp_path / "EVA02_CLIP_L_psz14_s4B.pt"
    model.to_upstream(tmp_path / "official", layout="eva-clip")
    torch.save(load_file(tmp_path / "official" / "model.safetensors"), file)
    monkeypatch.setattr(zero_shot, "eva_clip_arguments", lambda name: {"vision": {"tower": TOWER, "embed_dim": 8}, "text": TEXT})
    loaded = ZeroShot.from_pretrained(file)
    torch.testing.assert_close(loaded.similarity(pictures(), LABELS), ZeroShot(model).similarity(pictures(), LABELS))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda made: made.classify([], LABELS), ValueError, "at least one picture"),
        (lambda made: made.classify("cat.jpg", LABELS), ValueError, "pictures is 'cat.jpg'"),
        (lambda made: made.classify([b"no image"], LABELS), ValueError, r"pictures\[0\]"),
        (lambda made: made.classify(["missing.jpg"], LABELS), FileNotFoundError, "missing.jpg"),
        (lambda made: made.classify(pictures(), []), ValueError, "names are"),
        (lambda made: made.classify(pictures(), ["cat", "cat"]), ValueError, "each one once"),
        (lambda made: made.classify(pictures(), LABELS, templates=["a photo"]), ValueError, "templates are"),
        (lambda made: made.search(pictures(), ""), ValueError, "texts are"),
        (lambda made: made.search(pictures(), "a " * 90), ValueError, "accepted: up to 77"),
        (lambda made: made.search(pictures(), "cat", top=0), ValueError, "top is 0"),
        (lambda made: made.similarity(pictures(), "cat"), ValueError, "a list of at least one"),
        (lambda made: ZeroShot(made.model, batch_size=0), ValueError, "batch_size is 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call(ZeroShot(clip()))
