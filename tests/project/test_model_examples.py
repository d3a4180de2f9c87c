"""The scripts of whole models: short, and the same way with a tiny model and with the folder of one."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmblocks.support.pictures import picture_of, pixels_of

FOLDER = Path(__file__).parents[2] / "examples" / "models"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "tiny")


@pytest.fixture(autouse=True)
def _beside_the_scripts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.chdir(tmp_path)


def shown(file: Path) -> dict[str, Tensor]:
    """The pictures that a script has saved."""
    runpy.run_path(str(file), run_name="__main__")
    return {path.name: pixels_of(picture_of(path)) for path in Path("demo/models").glob("*.png")}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_goes_the_whole_way(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = FOLDER / f"{name}.py"
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 40
    monkeypatch.setattr(sys, "argv", [str(file)])
    pictures = shown(file)
    printed = capsys.readouterr().out
    assert printed.strip()

    tiny = runpy.run_path(str(file))
    made = tiny["tiny"]() if name == "eva_clip" else tiny["pipeline"](tiny["tiny"])  # with the seed of the script
    (made.model if name == "eva_clip" else made).save_pretrained(tmp_path / "folder")
    monkeypatch.setattr(sys, "argv", [str(file), str(tmp_path / "folder")])
    again = shown(file)
    assert again.keys() == pictures.keys()
    for picture, same in zip(pictures.values(), again.values(), strict=True):
        torch.testing.assert_close(picture, same, atol=2 / 255, rtol=0)  # tensors in files may be summed in another order
    assert capsys.readouterr().out == printed
