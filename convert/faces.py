"""Faces: `__init__.py` files that list the public names of a package and load each one when it is first asked for."""

import ast
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any


@functools.cache
def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns `__getattr__` and `__dir__` for a package that loads its public names on first use (PEP 562).

    The names are those that its `__init__.py` imports under `if TYPE_CHECKING:`, where type checkers read them as well.
    `etils.epy.lazy_api_imports` would need no such block, but it replaces `builtins.__import__` of the whole process
    while a face is loaded: what other threads import at that moment turns into proxies, and two faces that two threads
    load at once can leave the replacement in place.

    A package whose own children import this file calls it on first use instead of while it is loaded: CPython reports a
    deadlock where one thread loads a package that imports its child and another thread loads that child.

    Args:
      package: Name of the package, its `__name__`.
    """
    spec = sys.modules[package].__spec__
    source = spec and spec.loader and spec.loader.get_source(package)  # pyright: ignore[reportAttributeAccessIssue]
    tree = ast.parse(source or "")
    homes = {
        alias.name: str(line.module)
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }

    def get(name: str) -> Any:
        if name in homes:
            # Not kept: who replaces it in its file replaces it here.
            return getattr(importlib.import_module(homes[name]), name)
        if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}"):
            return importlib.import_module(f"{package}.{name}")  # a room, after its package alone was imported
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted({*vars(sys.modules[package]), *homes})
