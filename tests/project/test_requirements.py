"""The locks say what pyproject.toml says, and what is installed is what they say."""

import tomllib
from importlib.metadata import requires, version

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))


def lines_of(lock: str) -> list[Requirement]:
    text = (REPOSITORY / "requirements" / f"{lock}.txt").read_text()
    return [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]


def version_of(line: Requirement) -> str:
    (pin,) = line.specifier
    assert pin.operator == "=="
    return pin.version


APART = ("page", "page-test")
"""Extras with a lock of their own."""


def direct_requirements(lock: str) -> list[Requirement]:
    project = PROJECT["project"]
    extras = {extra: names for extra, names in project["optional-dependencies"].items() if (extra in APART) == (lock == "page")}
    listed = [*project["dependencies"], *(name for names in extras.values() for name in names)]
    requirements = [Requirement(name) for name in [*listed, *([] if lock == "page" else PROJECT["build-system"]["requires"])]]
    return [requirement for requirement in requirements if requirement.name != "mmblocks"]


def locked_versions(lock: str, **environment: str) -> dict[str, str]:
    """What a lock says for one kind of machine; this one by default."""
    lines = [line for line in lines_of(lock) if line.marker is None or line.marker.evaluate(environment or None)]
    versions = {canonicalize_name(line.name): version_of(line) for line in lines}
    assert len(versions) == len(lines), "a package with two versions"
    return versions


@pytest.mark.parametrize("lock", ["locked", "oldest", "page"])
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("system", "machine"), PLATFORMS)
def test_a_lock_answers_for_every_direct_requirement(lock: str, python: str, system: str, machine: str) -> None:
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": system,
        "platform_machine": machine,
    }
    versions = locked_versions(lock, **environment)
    for requirement in direct_requirements(lock):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            found = versions[canonicalize_name(requirement.name)]
            assert found in requirement.specifier, f"{requirement} and {found}: make lock"


def test_the_oldest_are_the_lower_bounds() -> None:
    versions = locked_versions("oldest")
    for requirement in direct_requirements("oldest"):
        (floor,) = [bound.version for bound in requirement.specifier if bound.operator == ">="]
        name = canonicalize_name(requirement.name)
        if name in versions:
            assert versions[name] in SpecifierSet(f"=={floor}"), f"{requirement} and {versions[name]}: make lock"


def needed() -> set[str]:
    """Names of the packages that the test extra leads to, directly or not."""
    found: set[tuple[str, str]] = set()
    waiting = [("mmblocks", "test")]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        for requirement in map(Requirement, requires(name) or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(requirement.name), one) for one in ("", *requirement.extras)]
    return {name for name, _ in found}


def test_what_is_installed_is_what_the_lock_says(pytestconfig: pytest.Config) -> None:
    stack = pytestconfig.option.stack
    if stack not in ("locked", "oldest"):
        pytest.skip("--stack names no lock: any versions may be installed")
    versions = locked_versions(stack)
    for name in needed() - {"mmblocks"}:
        assert name in versions, f"{name} is in no lock: make lock"
        assert version(name).partition("+")[0] == versions[name], name
