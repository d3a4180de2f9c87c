"""The wheel as its users get it: installed out of the repository's sight, it runs the README's code and the commands.

    python -m tests.project.try_wheel dist/mmblocks-0.2.0-py3-none-any.whl

Libraries come from the environment that runs this; nothing is downloaded.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from zipfile import ZipFile

from tests.conftest import REPOSITORY
from tests.project.test_readme import blocks

SHOW_ORIGIN = "import mmblocks; print(mmblocks.__file__, mmblocks.__version__, sep='\\n')"


def check_contents(wheel: Path, repository: Path = REPOSITORY) -> None:
    """Raises ValueError unless the wheel holds the whole package, its types among it, and nothing beside it."""
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    files = (path for ending in ("*.py", "*.pyi", "py.typed") for path in (repository / "mmblocks").rglob(ending))
    wanted = {path.relative_to(repository).as_posix() for path in files}
    if missing := sorted(wanted - names):
        raise ValueError(f"{wheel.name} lacks {missing}")
    if strange := sorted(name for name in names if not name.startswith(("mmblocks/", "mmblocks-"))):
        raise ValueError(f"{wheel.name} holds {strange}; accepted: the package and what describes it")


def install(wheel: Path, folder: Path) -> Path:
    """Makes an environment in ``folder`` with the wheel alone, which sees this one's libraries; gives its folder of programs."""
    venv.create(folder, symlinks=True)
    programs, python = folder / "bin", folder / "bin" / "python"
    libraries = sysconfig.get_path("purelib")
    packages = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
    # A folder that is named so is searched, but its own .pth files, such as that of an editable install, are not read.
    (packages / "libraries.pth").write_text(libraries + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, "--no-index", "--no-deps", "--ignore-installed", str(wheel)], folder)
    return programs


def readme_code() -> str:
    """The python blocks of the README as one program, each in its own lines, so that errors point into the page."""
    page = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    lines = [""] * len(page.splitlines())
    for block in blocks(page):
        for number, line in enumerate(block.splitlines()):
            lines[number] = line or lines[number]
    return "\n".join(lines) + "\n"


def run(command: list[str | Path], folder: Path) -> str:
    """What a program prints that is run in ``folder``, without this environment's ways to find modules."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON") and name != "VIRTUAL_ENV"}
    done = subprocess.run([str(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def main(wheel: Path) -> None:
    check_contents(wheel)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        programs = install(wheel, folder / "environment")
        origin, version = run([programs / "python", "-c", SHOW_ORIGIN], folder).split()
        if not Path(origin).is_relative_to(folder) or version != wheel.name.split("-")[1]:
            raise RuntimeError(f"mmblocks {version} came from {origin}; accepted: {wheel.name}, from within {folder}")
        (folder / "readme.py").write_text(readme_code(), encoding="utf-8")
        run([programs / "python", "readme.py"], folder)
        for argument, wanted in (("--help", "tokenize"), ("list", "Emu3VQ")):
            said = run([programs / "mmblocks", argument], folder)
            if wanted not in said:
                raise RuntimeError(f"mmblocks {argument} does not name {wanted}; it said:\n{said}")
    sys.stdout.write(f"{wheel.name}: whole, installs, runs the README and the commands\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
