"""The examples in docstrings, those of built-in maps and losses too, which doctest itself skips."""

from __future__ import annotations

import doctest
import inspect

import pytest

import fastgrad as fg

FINDER = doctest.DocTestFinder(exclude_empty=True, recurse=False)


def public():
    """(name, object) of everything public that can have an example."""
    yield "fastgrad", fg
    for name in fg.__all__:
        obj = getattr(fg, name)
        is_instance = not inspect.isclass(obj) and not inspect.isroutine(obj)
        yield f"fastgrad.{name}", type(obj) if is_instance else obj
        for method, f in vars(type(obj)).items() if is_instance else ():
            if inspect.isfunction(f) and not method.startswith("_"):
                yield f"fastgrad.{name}.{method}", f


OBJECTS = dict(public())


def examples(name):
    obj = OBJECTS[name]
    unwrapped = inspect.unwrap(obj) if inspect.isroutine(obj) else obj
    return [e for t in FINDER.find(unwrapped, name) for e in [t] if t.examples]


@pytest.mark.parametrize("name", OBJECTS)
def test_everything_public_has_an_example(name):
    assert examples(name), f"{name} has no example in its docstring"


@pytest.mark.parametrize("name", OBJECTS)
def test_examples_run(name):
    before = fg.get_num_threads()
    runner = doctest.DocTestRunner(verbose=False)
    report: list[str] = []
    for example in examples(name):
        runner.run(example, out=report.append)
    fg.set_num_threads(before)  # the example of set_num_threads leaves it changed
    assert runner.failures == 0, "".join(report)


def test_derivatives_are_among_them():
    assert "fastgrad.softmax.vjp" in OBJECTS
    assert "fastgrad.cross_entropy.value_and_grad" in OBJECTS
