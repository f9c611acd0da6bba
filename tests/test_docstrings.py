"""Docstrings as reference: every public name says what it takes, returns and raises, and its examples run."""

import ast
import doctest
import importlib
import importlib.util
import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

import pytest

import flax_vae
from tests.test_layering import FILES

FACES = sorted(name for name, path in FILES.items() if path.name == "__init__.py")
SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Examples|Source):")
ENTRY = re.compile(r"  (\*{0,2}\w+(?:, \*{0,2}\w+)*): ")


def marked(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.torch) if name.startswith("torch_ref") else name


def sections_of(documented: Any) -> dict[str, list[str]]:
    """Lines of the docstring below the heading of each section; those before the first one below ""."""
    found: dict[str, list[str]] = {"": []}
    heading = ""
    for line in inspect.cleandoc(documented.__doc__ or "").splitlines():
        if match := SECTION.match(line):
            heading = match[1]
        found.setdefault(heading, []).append(line)
    return found


def described(documented: Any, *headings: str) -> set[str]:
    """Names that have an entry below one of these headings."""
    sections = sections_of(documented)
    entries = [ENTRY.match(line) for heading in headings for line in sections.get(heading, [])]
    return {name.strip("* ") for entry in entries if entry for name in entry[1].split(",")}


def function_faults(
    function: Callable[..., Any], inherited: Collection[str] = (), *, is_property: bool = False
) -> Iterator[str]:
    """What the docstring of a function leaves out, or describes although it does not exist."""
    sections, signature = sections_of(function), inspect.signature(function)
    summary = " ".join(sections[""])
    if not summary:
        yield "no docstring"
        return
    taken = {name for name in signature.parameters if name not in ("self", "cls")}
    told = described(function, "Args")
    for name in sorted(taken - told - set(inherited)):
        yield f"no description of {name}"
    for name in sorted(told - taken):
        yield f"{name} is described, but is no argument"
    gives = signature.return_annotation not in (None, "None", NoReturn, "NoReturn", inspect.Signature.empty)
    told_result = re.match(r"Returns |Yields ", summary) or {"Returns", "Yields"} & sections.keys()
    if gives and not is_property and not told_result:
        yield "no description of what it returns"
    raises = " ".join(sections.get("Raises", []))
    for error in raised_by(function):
        if not re.search(rf"\b({'|'.join(kind.__name__ for kind in error.__mro__[:-1])})\b", raises):
            yield f"no description of {error.__name__}"


def raised_by(function: Callable[..., Any]) -> set[type[BaseException]]:
    """Exceptions that a function raises in its own text, except in a `try` or a function inside it."""
    found = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            error = inspect.unwrap(function).__globals__.get(node.exc.func.id)
            if error is None:
                error = getattr(importlib.import_module("builtins"), node.exc.func.id, None)
            if inspect.isclass(error) and issubclass(error, BaseException):
                found.add(error)
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.Try | ast.FunctionDef | ast.Lambda):
                walk(child)

    walk(ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0])
    return found


def class_faults(kind: type) -> Iterator[str]:
    """What the docstrings of a class, of its fields and of its methods leave out."""
    told = described(kind, "Args", "Attributes")
    if not sections_of(kind)[""]:
        yield "no docstring"
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # pyright: ignore[reportAttributeAccessIssue]
    for field, text in zip(body, body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):  # the help text of a flag
            told.add(ast.unparse(field.target))
    for base in kind.__mro__[1:-1]:
        told |= described(base, "Args", "Attributes")
    # An option that several commands have carries its help text in its annotation.
    told |= {name for name, note in getattr(kind, "__annotations__", {}).items() if hasattr(note, "__metadata__")}
    own = [name for name in getattr(kind, "__annotations__", {}) if not name.startswith("_")]
    if is_dataclass(kind):  # linen adds two fields to its modules
        own = [field.name for field in fields(kind) if field.name in own and field.name not in ("name", "parent")]
    for name in own:
        if name not in told:
            yield f"no description of {name}"
    for name, value in vars(kind).items():
        method = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        method = method.fget if isinstance(method, property) else inspect.unwrap(method) if callable(method) else None
        documented = name in ("__init__", "__call__") or not name.startswith("_")
        if not inspect.isfunction(method) or not documented or name in ("setup", *own) or not is_ours(method):
            continue
        inherited = [base.__dict__[name] for base in kind.__mro__[1:-1] if name in base.__dict__ and is_ours(base)]
        known = {argument for one in inherited for argument in described(one, "Args")}
        if name == "__init__":
            if not is_dataclass(kind) and not hasattr(kind, "_fields"):
                faults = function_faults(method, known | told)
                yield from (f"{fault} (__init__)" for fault in faults if fault != "no docstring")
            continue
        if inherited and not method.__doc__:
            continue
        is_property = isinstance(value, property)
        yield from (f"{fault} ({name})" for fault in function_faults(method, known, is_property=is_property))


def is_ours(thing: Any) -> bool:
    return thing.__module__.partition(".")[0] in ("flax_vae", "torch_ref")


@pytest.mark.parametrize("face", [marked(name) for name in FACES])
def test_public_names_are_described(face):
    module = importlib.import_module(face)
    faults = []
    for name in getattr(module, "__all__", []):
        thing = getattr(module, name)
        if inspect.isclass(thing):
            faults += [f"{name}: {fault}" for fault in class_faults(thing)]
        elif inspect.isfunction(thing):
            faults += [f"{name}: {fault}" for fault in function_faults(thing)]
    assert faults == []


def test_what_is_found():
    def scale(x: int, factor: int, *others: int) -> int:
        """Multiplies.

        Args:
          x: Number.
          times: Number of times.

        Raises:
          TypeError: Never.
        """
        if factor < 0:
            raise ValueError("negative")
        return x * factor

    assert list(function_faults(scale)) == [
        "no description of factor",
        "no description of others",
        "times is described, but is no argument",
        "no description of what it returns",
        "no description of ValueError",
    ]


EXAMPLE = re.compile(r"^ +>>> (?!.*doctest: .SKIP)", re.MULTILINE)
MODULES = sorted(name for name, path in FILES.items() if EXAMPLE.search(path.read_text("utf-8")))


@pytest.mark.parametrize("name", [marked(name) for name in MODULES])
def test_examples_run(name, tmp_path, monkeypatch):
    """In an empty folder, with the names of the module, those of `flax_vae`, and the usual ones."""
    module = importlib.import_module(name)
    usual = {"np": "numpy", "jax": "jax", "jnp": "jax.numpy"} | ({"torch": "torch"} if "torch_ref" in name else {})
    names = {short: importlib.import_module(whole) for short, whole in usual.items()}
    names |= {one: getattr(flax_vae, one) for one in flax_vae.__all__}
    monkeypatch.chdir(tmp_path)
    runner, told = doctest.DocTestRunner(), []
    for test in doctest.DocTestFinder().find(module, globs=names | vars(module)):
        runner.run(test, out=told.append)
    assert "".join(told) == ""
    assert runner.summarize(verbose=False).attempted > 0
