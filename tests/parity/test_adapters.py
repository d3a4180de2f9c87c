"""Adapters are found by the name of their component, whichever folder they lie in."""

import pytest

from tests.parity.adapters import ADAPTERS, HERE, adapter_of


def test_no_two_files_are_of_one_component():
    assert len(ADAPTERS) == len(list(HERE.glob("*/*.py"))) > 50


@pytest.mark.parametrize("component", ADAPTERS)
def test_an_adapter_compares_something(component: str):
    assert callable(getattr(adapter_of(component), "run", None)) or adapter_of(component).MANIFESTS
