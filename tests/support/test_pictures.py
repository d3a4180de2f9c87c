"""Pictures as people have them become one PIL image."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmblocks.support.pictures import picture_of

PICTURE = Image.fromarray(np.arange(3 * 4 * 6, dtype=np.uint8).reshape(4, 6, 3))


def png() -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, format="PNG")
    return file.getvalue()


def forms(folder: Path) -> dict[str, object]:
    array = np.array(PICTURE)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    file = folder / "picture.png"
    file.write_bytes(png())
    return {
        "PIL": PICTURE,
        "path": file,
        "str": str(file),
        "bytes": png(),
        "data": "data:image/png;base64," + base64.b64encode(png()).decode(),
        "array": array,
        "channels first": tensor,
        "in [0, 1]": tensor.float() / 255,
        "half": (tensor.double() / 255),
    }


@pytest.mark.parametrize("form", ["PIL", "path", "str", "bytes", "data", "array", "channels first", "in [0, 1]", "half"])
def test_every_form_is_the_same_picture(form, tmp_path) -> None:
    assert picture_of(forms(tmp_path)[form]).convert("RGB").tobytes() == PICTURE.tobytes()


def test_grey_and_transparent_arrays() -> None:
    assert picture_of(np.zeros((4, 6), dtype=np.uint8)).mode == "L"
    assert picture_of(torch.zeros(1, 4, 6, dtype=torch.uint8)).mode == "L"
    assert picture_of(np.zeros((4, 6, 4), dtype=np.uint8)).mode == "RGBA"


@pytest.mark.parametrize(
    ("picture", "error", "match"),
    [
        ("nowhere.png", FileNotFoundError, "picture is 'nowhere.png': no such file"),
        (b"no picture", ValueError, "none that Pillow knows"),
        (png()[:-40], ValueError, "picture cannot be read"),
        ("https://example.org/cat.png", ValueError, "nothing is fetched"),
        ("data:image/png,abc", ValueError, "accepted: data:image"),
        ("data:image/png;base64,@@", ValueError, "no base64"),
        (np.zeros((4, 6, 5), dtype=np.uint8), ValueError, r"uint8 of shape \(4, 6, 5\)"),
        (np.zeros((0, 6, 3), dtype=np.uint8), ValueError, "at least one pixel"),
        (torch.zeros(3, 4, 6) - 1, ValueError, r"lies in \[-1, -1\]"),
        (torch.full((3, 2, 2), float("nan")), ValueError, "accepted: "),
        (7, TypeError, "picture"),
    ],
)
def test_what_is_no_picture_is_refused(picture, error, match) -> None:
    with pytest.raises(error, match=match):
        picture_of(picture)
