"""Files that tools of others read: they parse, and what they name exists here."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
FORMS = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
FILES = [
    REPOSITORY / "CITATION.cff",
    REPOSITORY / ".pre-commit-config.yaml",
    *FORMS,
    REPOSITORY / ".github" / "workflows" / "ci.yml",
]


def read(path: Path) -> dict:
    # As YAML 1.2 has it, which GitHub reads: "on" is a name there, no truth value.
    text = re.sub(r"^on:", '"on":', path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return yaml.safe_load(text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file_parses(path: Path):
    assert isinstance(read(path), dict)


def test_citation_says_what_the_project_says():
    citation = read(REPOSITORY / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert all("name" in author or {"given-names", "family-names"} <= set(author) for author in citation["authors"])
    assert (citation["title"], citation["version"]) == (PROJECT["name"], PROJECT["version"])
    assert (citation["license"], citation["abstract"]) == (PROJECT["license"], PROJECT["description"])
    assert citation["keywords"] == PROJECT["keywords"]


def test_changelog_begins_with_the_projects_version():
    headings = re.findall(r"^## (.+)$", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.match(rf"{re.escape(PROJECT['version'])} \((unreleased|\d{{4}}-\d{{2}}-\d{{2}})\)$", headings[0])


def test_workflow_runs_what_ci_runs():
    workflow = read(REPOSITORY / ".github" / "workflows" / "ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    machines = {(one["os"], one["python"]) for one in job["strategy"]["matrix"]["include"]}
    assert machines == {("ubuntu-latest", "3.11"), ("ubuntu-latest", "3.13"), ("macos-latest", "3.11")}
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    assert (REPOSITORY / ".ci" / "run").is_file()
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
    (python,) = (step["with"] for step in job["steps"] if "setup-python" in step.get("uses", ""))
    assert (REPOSITORY / python["cache-dependency-path"]).is_file()


def test_hooks_run_the_makefiles_commands():
    (local,) = read(REPOSITORY / ".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    commands = [shlex.split(hook["entry"]) for hook in local["hooks"]]
    assert [Path(program).name for program, *_ in commands] == ["ruff", "ruff", "mypy", "lint-imports"]
    for hook, (program, *words) in zip(local["hooks"], commands, strict=True):
        assert hook["language"] == "system"
        wanted = program.replace(".venv/bin", "$(BIN)") + "".join(f" {word}" for word in words if not word.startswith("-"))
        assert re.search(rf"^\t{re.escape(wanted)}\b", MAKEFILE, re.MULTILINE), wanted


@pytest.mark.parametrize("path", [path for path in FORMS if path.name != "config.yml"], ids=lambda path: path.name)
def test_form_has_what_github_asks_for(path: Path):
    form = read(path)
    assert form["name"] and form["description"]
    asked = [field for field in form["body"] if field["type"] != "markdown"]
    names = [field["id"] for field in asked]
    assert len(set(names)) == len(names)
    assert {field["type"] for field in asked} <= {"checkboxes", "dropdown", "input", "textarea"}
    assert all(field["attributes"]["label"] for field in asked)


def test_make_targets_of_ci_and_of_the_guide_exist():
    pages = [(REPOSITORY / name).read_text(encoding="utf-8") for name in (".ci/run", "CONTRIBUTING.md", "README.md")]
    named = {target for page in pages for target in re.findall(r"(?:^|`)(?:timeout \w+ )?make ([a-z-]+)", page, re.MULTILINE)}
    assert "try-wheel" in named
    assert {target for target in named if not re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)} == set()


@pytest.mark.parametrize("top", ["mmblocks", "tests", "docs", "examples", "benchmarks", "scripts"])
def test_no_folder_is_too_full_to_look_through(top: str):
    folders = [path for path in [REPOSITORY / top, *(REPOSITORY / top).rglob("*/")] if "__pycache__" not in path.parts]
    plumbing = {"__pycache__", "__init__.py", "__init__.pyi", "py.typed"}
    full = {str(path): len([file for file in path.iterdir() if file.name not in plumbing]) for path in folders if path.is_dir()}
    assert {path: count for path, count in full.items() if count > 25} == {}
