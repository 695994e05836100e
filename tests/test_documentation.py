"""What a reader finds: a docstring with shapes, errors and an example for each function, and a README that runs."""

import doctest
import inspect
import re
from pathlib import Path

import pytest

import fastconv

FUNCTIONS = [name for name in fastconv.__all__ if inspect.isfunction(getattr(fastconv, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring(name):
    """Parameters, returns and errors, its own or those of the function that it names; examples run as doctests."""
    text = inspect.getdoc(getattr(fastconv, name)) or ""
    assert ">>> " in text
    if not inspect.signature(getattr(fastconv, name)).parameters:
        return
    while "Parameters" not in text and (see := re.search(r"[Ss]ee `(\w+)`", text)):
        text = inspect.getdoc(getattr(fastconv, see[1])) or ""
    for section in ("Parameters", "Returns", "Raises"):
        assert f"{section}\n---" in text, section


def test_readme():
    readme = Path(__file__).parents[1] / "README.md"
    failed, tried = doctest.testfile(str(readme), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert tried > 3
    assert not failed
