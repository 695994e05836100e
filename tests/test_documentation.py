"""What a reader finds: a docstring with shapes, errors and an example for each function, and a README that runs."""

import doctest
import inspect
import re
from pathlib import Path

import pytest

import fastconv
import fastconv.numba_ext  # as its entry point does, where fastconv is installed
from fastconv import nn

FUNCTIONS = [name for name in fastconv.__all__ if inspect.isfunction(getattr(fastconv, name))]


def documentation(name):
    return inspect.getdoc(getattr(fastconv, name)) or ""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring(name):
    """Parameters, returns and errors, its own or those of the function that it names; examples run as doctests."""
    text = documentation(name)
    assert ">>> " in text
    if not inspect.signature(getattr(fastconv, name)).parameters:
        return
    while "Parameters" not in text and (see := re.search(r"[Ss]ee `(\w+)`", text)):
        text = documentation(see[1])
    for section in ("Parameters", "Returns", "Raises"):
        assert f"{section}\n---" in text, section
    if name not in ("config", "warmup"):  # take no arrays
        assert re.search(r"^\w+ : (sequence of int\n.*)?\([NCK](/groups|\*R\*S)?, ", text, re.MULTILINE), (
            "no shapes"
        )


@pytest.mark.parametrize("name", nn.__all__)
def test_docstring_of_a_layer(name):
    """An example, and every parameter, its own or of the function that it names."""
    text = inspect.getdoc(getattr(nn, name))
    assert ">>> " in text
    if "Parameters are those of `" in text:
        return
    _, _, parameters = text.partition("Parameters\n----------\n")
    for parameter in inspect.signature(getattr(nn, name)).parameters:
        assert re.search(rf"^(.*, )?\*?{parameter}(,| :|$)", parameters, re.MULTILINE), parameter


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n not in ("algorithms", "config", "warmup")])
def test_sources(name):
    """What a function computes is defined in a publication, its own or that of a function it names."""
    met, names = set(), {name}
    while names:
        met |= names
        text = "".join(map(documentation, names))
        if "References\n---" in text:
            return
        names = set(re.findall(r"`(\w+)`", text)) & set(FUNCTIONS) - met
    pytest.fail("no References")


def test_readme():
    readme = Path(__file__).parents[1] / "README.md"
    failed, tried = doctest.testfile(str(readme), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert tried > 3
    assert not failed


def test_files_that_texts_name():
    """The README, the changelog and docstrings name files by the end of their path."""
    root = Path(__file__).parents[1]
    there = [p.relative_to(root).as_posix() for p in root.rglob("*.py")]
    for text in (root / "README.md", root / "CHANGELOG.md", *root.glob("fastconv/**/*.py")):
        for name in re.findall(r"`([\w/]+\.py)`", text.read_text(encoding="utf-8")):
            assert any(f"/{path}".endswith(f"/{name}") for path in there), f"{text.name} names {name}"
