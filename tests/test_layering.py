"""Who may import whom.  Everything is asked of a fresh interpreter or of the source, not of this process."""

import ast
import importlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

# The packages, and rooms of ours, that the files of each package may import beyond the standard library and themselves.
# `torch`, `tensorstore` and `huggingface_hub` in `convert` are for pickled checkpoints, those of training and names on
# the hub, inside functions: that nothing loads them by itself is asked below.
MAY_IMPORT = {
    "flax_vae.convert": {
        *("huggingface_hub", "ml_dtypes", "msgpack", "numpy", "rich", "safetensors", "tensorstore", "torch"),
        *("array_record", "tyro"),
        *("etils", "fsspec"),  # addresses of buckets, inside functions
    },
    "torch_ref": {
        *("flax_vae.convert", "einops", "jaxtyping", "ml_dtypes", "numpy", "torch"),
        "flax_vae.images",  # a room that loads no JAX
    },
    "flax_vae": {
        *("flax_vae.convert", "einops", "flax", "jax", "jaxtyping", "ml_dtypes", "numpy"),
        *("PIL", "rich", "tyro"),  # the command, and what it reads and draws
        "optax",  # whose state of Adam is converted
        *("array_record", "datasets", "pyarrow"),  # images that lie in such files, inside functions
    },
    "flax_vae.train": {
        *("flax_vae.convert", "flax_vae"),
        *("einops", "flax", "jax", "jaxtyping", "jinja2", "numpy", "optax", "orbax", "PIL", "rich", "ruamel", "tyro"),
        # Each for what its name says, inside functions or in a file that only a function imports.
        *("tensorboardX", "wandb"),
    },
}

# The rooms of each package and the files beside them, each before those that import it.
ORDER = {
    "flax_vae.convert": [
        *(
            "errors",
            "faces",
            "old_names",
            "extras",
            "files",
            "formats",
            "architecture",
            "console",
            "table",
            "weights",
            "latents",
        ),
        *("cli", "__main__"),
    ],
    "flax_vae": [
        *("errors", "finite", "ops", "images"),
        *(
            "attention",
            "numerics",
            "embedding",
            "latents",
            "gaussian",
            "layers",
            "coders",
            "tiny_autoencoder",
            "autoencoder",
            "discriminator",
            "loading",
            "adam_state",
        ),
        *("conditioning", "trace", "nnx", "compat", "inference", "folders", "cli", "__main__"),
    ],
    "flax_vae.train": [
        *("errors", "config", "identity_init", "conditioning", "state", "losses", "data", "optim"),
        *("devices", "run", "gradients", "step", "build", "evaluation", "report", "plan", "loop", "cli", "__main__"),
    ],
}
MOST_FILES = 12  # in a room

# What a plain `import` of each package must not load.
STAYS_OUT = {
    "flax_vae.convert": {
        *("flax", "huggingface_hub", "jax", "optax", "orbax", "tensorstore", "torch"),
        *("flax_vae", "torch_ref", "flax_vae.train"),
    },
    "flax_vae": {
        *("array_record", "datasets", "flax", "jax", "optax", "orbax", "pyarrow", "torch"),
        *("torch_ref", "flax_vae.train"),
    },
    "flax_vae.train": {"array_record", "datasets", "jax", "ruamel", "tensorboardX", "torch", "torch_ref", "wandb"},
    "torch_ref": {"flax", "jax", "optax", "orbax", "flax_vae", "flax_vae.train"},
}

SCRIPTS = sorted(
    script for script in importlib.metadata.distribution("flax-vae").entry_points if script.group == "console_scripts"
)


def package_of(module: str) -> str:
    """One of the four packages, or the top-level package of any other module."""
    ours = [name for name in MAY_IMPORT if f"{module}.".startswith(f"{name}.")]
    return max(ours, key=len, default=module.partition(".")[0])


def entry_of(module: str) -> str:
    """The room that a file lies in, or the file itself where it lies in none; empty for the package itself."""
    return module.removeprefix(package_of(module)).removeprefix(".").partition(".")[0]


def files_of(package: str) -> dict[str, Path]:
    """Module name to file, of the package as it is installed."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None, f"{package} is not installed"
    root = Path(spec.origin).parent
    paths = {path: [package, *path.relative_to(root).with_suffix("").parts] for path in sorted(root.rglob("*.py"))}
    names = {".".join(parts).removesuffix(".__init__"): path for path, parts in paths.items()}
    return {name: path for name, path in names.items() if package_of(name) == package}


FILES = {name: path for package in MAY_IMPORT for name, path in files_of(package).items()}


def imports_of(module: str) -> set[str]:
    """Every module that a file imports, wherever in it the import stands: a late import hides a circle, no more."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{FILES[module]}:{node.lineno} imports relatively; write the full name"
            # `from package import module` names a file, `from module import thing` does not
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else str(node.module) for name in inner}
    return found


def loaded_by(code: str, cwd: Path) -> set[str]:
    """Packages of which a fresh interpreter has loaded anything, beyond the face of `flax_vae`, by running `code`."""
    program = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {package_of(name) for name in json.loads(done.stdout.splitlines()[-1]) if name != "flax_vae"}


@pytest.mark.parametrize(
    "package", [pytest.param(name, marks=pytest.mark.torch) if name == "torch_ref" else name for name in STAYS_OUT]
)
def test_importing_a_package_loads_no_more_than_it_may(package, tmp_path):
    assert sorted(loaded_by(f"import {package}", tmp_path) & STAYS_OUT[package]) == []


@pytest.mark.torch
def test_the_trace_of_the_reference_loads_no_jax(tmp_path):
    assert sorted(loaded_by("import torch_ref.trace", tmp_path) & {"flax", "jax", "optax", "orbax"}) == []


@pytest.mark.parametrize("module", FILES)
def test_a_file_imports_only_what_its_package_may(module):
    package = package_of(module)
    allowed = MAY_IMPORT[package] | sys.stdlib_module_names | {package}
    assert sorted(name for name in imports_of(module) if not allowed & {name, package_of(name)}) == []


ARRANGED = [module for module in FILES if package_of(module) in ORDER and module not in ORDER]


@pytest.mark.parametrize("package", ORDER)
def test_the_order_names_every_room(package):
    assert sorted(ORDER[package]) == sorted({entry_of(name) for name in ARRANGED if package_of(name) == package})


@pytest.mark.parametrize("module", ARRANGED)
def test_a_file_imports_from_rooms_before_its_own(module):
    package = package_of(module)
    before = ORDER[package][: ORDER[package].index(entry_of(module)) + 1]
    used = {entry_of(name) for name in imports_of(module) & FILES.keys() if package_of(name) == package}
    assert sorted(used - {"", *before}) == []


@pytest.mark.parametrize("module", FILES)
def test_other_rooms_import_the_face(module):
    here = (package_of(module), entry_of(module))
    others = {name: (package_of(name), entry_of(name)) for name in imports_of(module) & FILES.keys()}
    faces = {".".join(there).removesuffix(".") for there in others.values()}
    assert sorted(name for name, there in others.items() if there != here and name not in faces) == []


ROOMS = [module for module in ARRANGED if FILES[module].name == "__init__.py"]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_small(room):
    assert len([name for name in FILES if name.rpartition(".")[0] == room]) <= MOST_FILES


@pytest.mark.parametrize("room", ["flax_vae.convert", "flax_vae", *ROOMS])
def test_a_face_gives_what_it_names(room):
    face = importlib.import_module(room)
    assert face.__doc__
    imported = [node for node in ast.walk(ast.parse(FILES[room].read_text())) if isinstance(node, ast.ImportFrom)]
    names = {
        alias.name: line.module
        for line in imported
        for alias in line.names
        if line.module not in ("typing", "flax_vae.convert.faces", "flax_vae.convert.old_names")
    }
    assert sorted(names) == sorted(getattr(face, "__all__", []))
    for name, module in names.items():
        assert getattr(face, name) is getattr(importlib.import_module(str(module)), name)


@pytest.mark.parametrize(
    "room", [f"flax_vae.convert.{room}" for room in ("files", "formats", "table", "weights", "latents")]
)
def test_a_room_of_numpy_loads_no_framework(room, tmp_path):
    assert (
        sorted(loaded_by(f"from {room} import *", tmp_path) & (STAYS_OUT["flax_vae.convert"] - {"tensorstore"})) == []
    )


@pytest.mark.parametrize("room", ["flax_vae.images", "flax_vae.train.config"])
def test_a_room_that_needs_no_jax_loads_none(room, tmp_path):
    assert sorted(loaded_by(f"from {room} import *", tmp_path) & {"flax", "jax", "optax", "orbax", "torch"}) == []


def test_no_two_public_names_are_alike():
    """Classes and functions; every command has a `main`, and the models are twins of their PyTorch counterparts."""
    homes: dict[str, list[str]] = {}
    for module in ARRANGED:
        for node in ast.parse(FILES[module].read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module)
    twins = {f"flax_vae.{name.partition('.')[2]}" for name in FILES if name.startswith("torch_ref.")}
    del homes["main"]
    assert {name: files for name, files in homes.items() if len(files) > 1 and not set(files) <= twins} == {}


def test_no_circle_between_files():
    graph = {module: imports_of(module) & FILES.keys() for module in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"files import each other in a circle: {' <- '.join(error.args[1])}")


def test_the_circle_finder_finds_circles():
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


def test_there_are_commands():
    assert {script.name for script in SCRIPTS} == {"flax-vae", "flax-vae-convert", "flax-vae-train"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_help_needs_no_framework(script, tmp_path):
    code = f"""
sys.argv = [{script.name!r}, "--help"]
from {script.module} import {script.attr} as main
try:
    code = main()
except SystemExit as exit_:
    code = exit_.code
assert not code, code
"""
    assert sorted(loaded_by(code, tmp_path) & {"flax", "jax", "optax", "orbax", "torch"}) == []


def test_every_package_is_typed():
    for package in MAY_IMPORT:
        assert (FILES[package].parent / "py.typed").is_file()


def test_the_tests_are_not_installed():
    installed = importlib.metadata.files("flax-vae") or []
    assert not [file for file in installed if file.parts[0] == "tests"]
