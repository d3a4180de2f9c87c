"""What a training left on the disk: nothing of it is taken that was not saved, and nothing stays beside it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmblocks.tokenizers import ConvVQ
from mmblocks.training import tokenizer_notes
from mmblocks.training.adversarial import PatchDiscriminator
from mmblocks.training.tokenizer import TokenizerTrainer
from mmblocks.training.tokenizer_recipe import TokenizerRecipe, check_types

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A training of two steps, with a discriminator."""
    torch.manual_seed(0)
    tokenizer = ConvVQ(channels=(4, 4), num_codes=4, code_dim=2)
    recipe = TokenizerRecipe(kmeans_at=1, loss_weights={"codebook": 0.7})
    trainer = TokenizerTrainer(tokenizer, recipe=recipe, discriminator=PatchDiscriminator(channels=4, num_layers=1))
    for _ in range(2):
        trainer.step(torch.rand(1, 3, 16, 16))
    trainer.save(tmp_path_factory.mktemp("state") / "run")
    return tmp_path_factory.getbasetemp() / "state0" / "run"


@pytest.fixture
def run(saved, tmp_path) -> Path:
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def edit(run: Path, *, sealed: bool = True, **changes) -> None:
    """Other notes, with a checksum that fits them."""
    file = run / "trainer.json"
    content = json.loads(file.read_text()) | changes
    content = {name: value for name, value in content.items() if value != "(away)"}
    if sealed:
        content.pop("checksum", None)
        content["checksum"] = tokenizer_notes._of_json(content)
    number = content.pop("format", None)
    file.write_bytes(tokenizer_notes._text({"format": number, **content}))


def as_format_1(run: Path) -> None:
    """As an earlier version saved it."""
    edit(run, sealed=False, format=1, files="(away)", checksum="(away)")


def refused(run: Path, match: str, kind=ValueError) -> None:
    with pytest.raises(kind, match=match) as caught:
        TokenizerTrainer.resume(run)
    assert len(str(caught.value)) < 1000


def test_every_file_has_a_checksum(saved):
    files = {file.relative_to(saved).as_posix() for file in saved.rglob("*") if file.is_file()}
    assert set(json.loads((saved / "trainer.json").read_text())["files"]) == files - {"trainer.json"}
    assert {"state.safetensors", "tokenizer/config.json", "tokenizer/model.safetensors", "discriminator/config.json"} <= files
    assert TokenizerTrainer.resume(saved).num_steps == 2


@pytest.mark.parametrize(
    "name",
    ["state.safetensors", "trainer.json", "tokenizer/config.json", "tokenizer/model.safetensors", "discriminator/config.json",
     "discriminator/model.safetensors"],
)  # fmt: skip
def test_a_flipped_bit_anywhere_is_refused_by_name(run, name):
    file = run / name
    sound = file.read_bytes()
    for place in {len(sound) * step // 40 for step in range(40)} | {len(sound) - 2}:
        for bit in (0, 1, 6):
            damaged = bytearray(sound)
            damaged[place] ^= 1 << bit
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match=rf"{Path(name).name}") as caught:
                tokenizer_notes.read(run)
            assert str(file) in str(caught.value)
    file.write_bytes(sound[:-1])
    refused(run, Path(name).name)
    file.write_bytes(sound)
    assert TokenizerTrainer.resume(run).num_steps == 2


def test_a_flipped_bit_of_the_optimizer(run):
    content = bytearray((run / "state.safetensors").read_bytes())
    content[-5] ^= 1
    (run / "state.safetensors").write_bytes(content)
    refused(run, r"state\.safetensors is damaged, or was changed since it was saved")


def test_a_file_that_is_gone(run):
    (run / "discriminator" / "model.safetensors").unlink()
    refused(run, "names 'discriminator/model.safetensors', which is not there", FileNotFoundError)


def test_what_earlier_versions_saved(run):
    whole = TokenizerTrainer.resume(run)
    as_format_1(run)
    again = TokenizerTrainer.resume(run)
    assert again.num_steps == 2 and again.recipe == whole.recipe
    assert all(map(torch.equal, again.tokenizer.state_dict().values(), whole.tokenizer.state_dict().values()))
    again.save(run)
    assert json.loads((run / "trainer.json").read_text())["format"] == 2
    as_format_1(run)
    edit(run, sealed=True)  # a checksum that the format does not have: its number was changed
    refused(run, "missing or unknown entries: checksum")


@pytest.mark.parametrize(
    "changes",
    [
        *({name: value} for name in ("num_steps", "num_skipped", "batches_counted")
          for value in ("3", True, None, -1, 3.0, 3.5, [3], 2**60, "(away)")),
        *({name: value} for name in ("codebook_is_laid", "perceptual") for value in (1, 0, "true", None, [])),
        {"format": True}, {"format": "2"}, {"format": 3}, {"format": None}, {"format": 2.0},
        {"device": 7}, {"device": None},
        {"frozen": {"tokenizer": [], "../run": []}}, {"frozen": {"/etc": []}}, {"frozen": {}}, {"frozen": []},
        {"frozen": {"discriminator": []}}, {"frozen": {"tokenizer": "x"}}, {"frozen": {"tokenizer": [7]}},
        {"frozen": {"tokenizer": ["no.such"]}}, {"extra": 1},
        {"files": {}}, {"files": []}, {"files": {"../run/trainer.json": "0"}}, {"files": {"/etc/passwd": "0"}},
        {"files": {"a\\b": "0"}}, {"files": "(away)"}, {"recipe": None}, {"recipe": []}, {"recipe": "(away)"},
    ],
    ids=repr,
)  # fmt: skip
def test_notes_of_another_type(run, changes):
    edit(run, **changes)
    name = next(iter(changes))
    refused(run, rf"trainer\.json.*{name}" if name != "extra" else "missing or unknown entries: extra")


@pytest.mark.parametrize(
    "changes",
    [{"lr": "0.1"}, {"lr": True}, {"lr": None}, {"gan_start": "3"}, {"gan_start": 3.5}, {"gan_start": True}, {"seed": [0]},
     {"betas": [0.5]}, {"betas": ["0.5", 0.9]}, {"betas": 0.5}, {"autocast": 1}, {"autocast": "no"}, {"last_layer": 7},
     {"loss_weights": {"codebook": "1"}}, {"loss_weights": [1]}, {"encode_options": "x"}, {"warm_up": -1}, {"unknown": 1}],
    ids=repr,
)  # fmt: skip
def test_recipe_of_another_type(run, changes):
    edit(run, recipe=json.loads((run / "trainer.json").read_text())["recipe"] | changes)
    refused(run, f"recipe is none: .*{next(iter(changes))}")


def test_recipe_of_numbers_alike():
    check_types({"gan_start": 1e3, "lr": 1, "loss_weights": {"a": -1}, "kmeans_at": None, "encode_options": {"sample": True}})
    with pytest.raises(TypeError, match=r"kmeans_at is '5'; accepted: int \| None"):
        check_types({"kmeans_at": "5"})


@pytest.mark.unchecked
def test_recipe_checks_its_types():
    assert TokenizerRecipe(gan_start=1e3).adversary.gan_start == 1000
    with pytest.raises(TypeError, match="lr is True; accepted: float"):
        TokenizerRecipe(lr=True)


def test_notes_that_are_none(run):
    for text in ("[]", "{", '{"format": 2, "format": 2}', "[" * 100_000):
        (run / "trainer.json").write_text(text)
        refused(run, "trainer.json")


@pytest.mark.parametrize("name", ["trainer.json", "state.safetensors"])
def test_link_out_of_the_folder(run, name):
    (run / name).rename(run.parent / name)
    (run / name).symlink_to(run.parent / name)
    refused(run, "a link that leads out of the folder")


def first(tensors, ending):
    return next(name for name in tensors if name.startswith("tokenizer/") and name.split("/")[1] == ending)


@pytest.mark.parametrize(
    ("ending", "value", "match"),
    [
        ("exp_avg", torch.ones(1), r"is float32 \(1,\); accepted: float32"),
        ("exp_avg_sq", torch.ones(()), "accepted: float32"),
        ("exp_avg", None, "lacks '"),
        ("step", torch.tensor([2.0]), "accepted: float32"),
        ("step", torch.tensor(float("nan")), "accepted: at least 0"),
        ("step", torch.tensor(-1.0), "accepted: at least 0"),
        ("generator", torch.zeros(3, dtype=torch.uint8), "accepted: uint8"),
        ("rng.cpu", torch.zeros(5056, dtype=torch.uint8), "holds no state of a generator"),
        ("usage.0", torch.ones(1, dtype=torch.long), "accepted: int64"),
        ("usage.0", torch.ones(2, 4), "accepted: int64"),
        ("waiting", torch.ones(3), r"accepted: features \(N, D\)"),
        ("odd", torch.ones(3), "has tensors that nothing needs: odd"),
    ],
)
def test_tensors_of_another_shape(run, ending, value, match):
    as_format_1(run)  # as if its checksum had been made to fit
    tensors = load_file(run / "state.safetensors")
    if ending == "rng.cpu":
        value = torch.zeros_like(tensors[ending])
    tensors[first(tensors, ending) if ending in ("exp_avg", "exp_avg_sq", "step") else ending] = value
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, run / "state.safetensors")
    refused(run, match)


KILLED = """
import sys
from pathlib import Path
import torch
from mmblocks.tokenizers import ConvVQ
from mmblocks.training.tokenizer import TokenizerTrainer
from tests.shared.killed import contents, steps_of

run = Path(sys.argv[1])
torch.manual_seed(0)
trainer = TokenizerTrainer(ConvVQ(channels=(4, 4), num_codes=4, code_dim=2))
trainer.save(run)

def save():
    trainer.num_steps = 5
    trainer.save(run)

total = steps_of(save)
trainer.save(run)
strays = 0
for step in range(1, total, max(1, total // 40)):
    steps_of(save, killed_at=step)
    assert TokenizerTrainer.resume(run).num_steps in (0, 5), step
    strays += len(list(run.parent.iterdir())) > 1
    trainer.num_steps = 0
    trainer.save(run)
    left = [file.name for file in run.parent.iterdir()]
    assert left == ["run"], f"left over, killed at step {step}: {left}"
    assert TokenizerTrainer.resume(run).num_steps == 0
print(strays)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged in one step on Linux alone")
def test_what_killed_saves_leave_is_removed_by_the_next(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "runs" / "run")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 20  # kills that left something
