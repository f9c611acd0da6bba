"""What `flax_vae` offers is loaded when it is asked for; that importing it loads no framework: `test_layering.py`."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import flax_vae

STUB = ast.parse(Path(flax_vae.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))


def test_every_public_name_is_what_its_module_defines():
    assert len(flax_vae.__all__) > 20
    for line in STUB.body:
        if isinstance(line, ast.ImportFrom):
            for name in line.names:
                assert getattr(flax_vae, name.name) is getattr(importlib.import_module(line.module), name.name)


def test_type_checkers_and_programs_are_told_the_same_names():
    (written,) = [line.value for line in STUB.body if isinstance(line, ast.Assign)]
    assert sorted(ast.literal_eval(written)) == flax_vae.__all__
    assert set(flax_vae.__all__) < set(dir(flax_vae))


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
