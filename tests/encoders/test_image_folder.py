import pytest
import torch
from PIL import Image as PILImage
from safetensors import safe_open
from safetensors.torch import save_file

from mmblocks.encoders import image_folder as module
from mmblocks.encoders.eva_clip_vision import EVACLIPVision
from mmblocks.encoders.image_folder import embed_folder, read_embeddings

SIZES = {"image_size": (16, 16), "patch_size": 8, "dim": 24, "num_layers": 1, "num_heads": 2, "mlp_dim": 37}
NAMES = ["a.png", "b.JPG", "more/c.png", "more/d.png", "more/e.webp"]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        PILImage.linear_gradient("L").rotate(30 * number).convert("RGB").save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def encoder(seed: int = 0) -> EVACLIPVision:
    torch.manual_seed(seed)
    eva = EVACLIPVision(tower=SIZES, embed_dim=10)
    torch.nn.init.normal_(eva.head.weight)
    return eva


def test_all_images_of_a_folder(images, tmp_path) -> None:
    eva = encoder().train()
    file = embed_folder(eva, images, tmp_path / "out.safetensors", batch_size=2, progress=False)
    files, embeddings = read_embeddings(file)
    assert files == NAMES and embeddings.shape == (5, 10) and eva.training
    with PILImage.open(images / "more/d.png") as image:
        torch.testing.assert_close(embeddings[3:4], eva.eval().embed(eva.preprocess(image)[None]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out.safetensors"]


def test_it_goes_on_where_it_stopped(images, tmp_path, monkeypatch) -> None:
    eva, file = encoder(), tmp_path / "out.safetensors"
    whole = read_embeddings(embed_folder(eva, images, tmp_path / "whole.safetensors", progress=False)).embeddings
    (images / "more/e.webp").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"more/e.webp cannot be read as an image"):
        embed_folder(eva, images, file, batch_size=2, progress=False)
    assert not file.exists()
    PILImage.linear_gradient("L").rotate(120).convert("RGB").save(images / "more/e.webp")
    batches = []
    once = module._embedded
    monkeypatch.setattr(module, "_embedded", lambda *inputs: batches.append(inputs[-1]) or once(*inputs))
    embed_folder(eva, images, file, batch_size=2, progress=False)
    assert batches == [NAMES[:2], NAMES[4:]]
    torch.testing.assert_close(read_embeddings(file).embeddings, whole)


def test_parts_of_another_model_are_not_taken(images, tmp_path) -> None:
    file = tmp_path / "out.safetensors"
    last = images / "more/e.webp"
    content = last.read_bytes()
    last.write_bytes(b"broken")
    with pytest.raises(ValueError, match="cannot be read"):
        embed_folder(encoder(1), images, file, batch_size=2, progress=False)
    last.write_bytes(content)
    embed_folder(encoder(0), images, file, batch_size=2, progress=False)
    whole = embed_folder(encoder(0), images, tmp_path / "whole.safetensors", progress=False)
    torch.testing.assert_close(read_embeddings(file).embeddings, read_embeddings(whole).embeddings)


@pytest.mark.parametrize(
    "files",
    ["[", "[" * 100_000, '"ab"', "{}", '["a.png"]', '["a.png", "../../pwned"]', '["a.png", "/etc/passwd"]', '["a.png", 7]',
     '["a.png", "b/./c"]', '["a.png", ""]', '["a.png", "b\\u0000c"]', None],
    ids=lambda text: repr(text)[:20],
)  # fmt: skip
def test_names_in_a_file_are_checked(files, tmp_path) -> None:
    save_file({"embeddings": torch.ones(2, 3)}, tmp_path / "a.safetensors", metadata={} if files is None else {"files": files})
    with pytest.raises(ValueError, match="holds no embeddings of a folder"):
        read_embeddings(tmp_path / "a.safetensors")


def test_an_image_that_claims_too_much(images, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 7)
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image: Image size \(65536 pixels\) exceeds limit"):
        embed_folder(encoder(), images, tmp_path / "out.safetensors", progress=False)


def test_files_of_others(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_embeddings(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="is no valid safetensors file"):
        read_embeddings(tmp_path / "a.safetensors")
    save_file({"embeddings": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"files": '["a.png", "b.png"]'})
    with pytest.raises(ValueError, match="holds no embeddings"):
        read_embeddings(tmp_path / "a.safetensors")


@pytest.mark.parametrize("harm", ["broken", "shorter", "flat"])
def test_a_part_that_is_not_sound_is_computed_again(images, tmp_path, harm, monkeypatch) -> None:
    eva, file = encoder(), tmp_path / "out.safetensors"
    whole = read_embeddings(embed_folder(eva, images, tmp_path / "whole.safetensors", progress=False)).embeddings
    with monkeypatch.context() as patched:
        patched.setattr(module.shutil, "rmtree", lambda folder: None)  # as if it had been killed there
        embed_folder(eva, images, file, batch_size=2, progress=False)
    part = sorted(tmp_path.glob("out.safetensors.parts/*"))[1]
    with safe_open(part, framework="pt") as content:
        rows, seen = content.get_tensor("embeddings"), content.metadata()
    if harm == "broken":
        part.write_bytes(part.read_bytes()[:20])
    else:
        save_file({"embeddings": rows[:1].clone() if harm == "shorter" else rows.flatten()}, part, metadata=seen)
    embed_folder(eva, images, file, batch_size=2, progress=False)
    torch.testing.assert_close(read_embeddings(file).embeddings, whole)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda path: embed_folder(encoder(), path / "none", path / "a.safetensors"), FileNotFoundError, "no such folder"),
        (lambda path: embed_folder(encoder(), path, path / "a.safetensors"), FileNotFoundError, "holds no images"),
        (lambda path: embed_folder(encoder(), path, path / "a.pt"), ValueError, "ends in .safetensors"),
        (lambda path: embed_folder(encoder(), path, path / "a.safetensors", batch_size=0), ValueError, "batch_size is 0"),
        (lambda path: embed_folder(encoder().tower, path, path / "a.safetensors"), TypeError, "EvaTower lacks preprocess"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message, tmp_path) -> None:
    with pytest.raises(error, match=message):
        call(tmp_path)
