"""What `flax_vae` offers is loaded when it is asked for; that importing it loads no framework: `test_layering.py`."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import flax_vae

FACE = ast.parse(Path(flax_vae.__file__).read_text(encoding="utf-8"))


def test_every_public_name_is_what_its_module_defines():
    (block,) = [node for node in FACE.body if isinstance(node, ast.If)]
    names = {alias.name: line.module for line in block.body for alias in line.names}
    assert sorted(names) == sorted(flax_vae.__all__) and len(names) > 20
    for name, module in names.items():
        assert getattr(flax_vae, name) is getattr(importlib.import_module(module), name)
    assert set(names) < set(dir(flax_vae))


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'flax_vae' has no attribute 'AutoDecoder'"):
        flax_vae.AutoDecoder  # noqa: B018 - asking is what is tested
    assert not hasattr(flax_vae, "_nothing")
    with pytest.raises(ImportError):
        from flax_vae import AutoDecoder  # noqa: F401


def test_files_are_found_by_whoever_imported_only_the_package_and_nothing_else_is_loaded():
    code = (
        "import sys, flax_vae\n"
        "assert flax_vae.__version__ and flax_vae.PRESETS['tiny'].factor == 4\n"
        "assert flax_vae.errors.__name__ == 'flax_vae.errors'\n"
        "assert not {'jax', 'flax', 'flax_vae.loading'} & set(sys.modules)\n"
        "from flax_vae import *\n"
        "assert AutoEncoder.__module__ == 'flax_vae.autoencoder' and 'jax' in sys.modules\n"
        "assert flax_vae.attention.attention\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("package", ["flax_vae", "flax_vae.convert"])
def test_a_package_loads_none_of_its_own_children_while_it_is_loaded(package):
    # CPython reports a deadlock if another thread loads that child at the same time.
    tree = ast.parse(Path(importlib.import_module(package).__file__).read_text(encoding="utf-8"))
    imported = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imported == ["from typing import TYPE_CHECKING"]


def test_faces_are_loaded_by_several_threads_at_once():
    code = """
import builtins, importlib, sys, threading
import flax_vae.convert, flax_vae.train  # CPython takes a loaded package out of sys.modules for a moment
sys.setswitchinterval(1e-6)
before, barrier, failures = builtins.__import__, threading.Barrier(3), []
def load(*names):
    barrier.wait()
    try:
        for name in names:
            importlib.import_module(name)
    except BaseException as error:
        failures.append(error)
threads = [
    threading.Thread(target=load, args=[f"flax_vae.{name}" for name in names])
    for names in (
        ("convert.console", "convert.formats", "convert.table", "convert.latents"),
        ("convert.files", "convert.architecture", "convert.weights", "train.config"),
        ("images", "train.data", "inference", "folders"),
    )
]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failures and builtins.__import__ is before, failures
from flax_vae.convert.formats import read_tensors
assert read_tensors.__module__ == "flax_vae.convert.formats.safetensors"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
