"""Names that a library has changed are read off its functions."""

from functools import wraps

import pytest

from mmblocks.support.renamed import TRANSFORMERS_CACHE, parameter_name


def old(hidden, past_key_values=None):
    pass


def new(hidden, cache=None):
    pass


@wraps(new)
def deprecating(*args, **options):
    """As a library wraps what still takes the old name too."""


def neither(hidden, **options):
    pass


@pytest.mark.parametrize(("function", "name"), [(old, "past_key_values"), (new, "cache"), (deprecating, "cache")])
def test_the_name_is_that_of_the_signature(function, name) -> None:
    assert parameter_name(function, TRANSFORMERS_CACHE) == name


def test_a_function_without_any_of_the_names_is_refused() -> None:
    with pytest.raises(TypeError, match="neither takes hidden, options; accepted: a function that takes cache or past_key_values"):
        parameter_name(neither, TRANSFORMERS_CACHE)
