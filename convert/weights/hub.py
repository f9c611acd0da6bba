"""Downloads models of the Hugging Face hub, named `hf:org/name[/folder or file][@revision]` in place of a path.

`huggingface_hub` is an optional dependency, imported only for such names.
"""

import os
import re
from pathlib import Path, PurePath

from flax_vae.convert.extras import needed
from flax_vae.convert.formats import is_index
from flax_vae.convert.weights.open import is_weights_file

PREFIX = "hf:"

# The files that `open_weights` can take from such a folder; of several copies of the same weights, only the one in full
# precision, since repositories keep pickles and half precision beside it.
FILES = (
    "config.json",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model-*-of-*.safetensors",
)
_VARIANT = (
    "config.json",
    "diffusion_pytorch_model.{}.safetensors",
    "diffusion_pytorch_model.safetensors.index.{}.json",
    "diffusion_pytorch_model.{}-*-of-*.safetensors",
    "diffusion_pytorch_model-*-of-*.{}.safetensors",
)

_PART = r"[\w-][\w.-]*"
_REPOSITORY = re.compile(f"{_PART}/{_PART}")
_PATH = rf"{_PART}(/{_PART})*"
_NAME = re.compile(rf"(?P<repository>{_PART}/{_PART})(/(?P<inside>{_PATH}))?(@(?P<revision>{_PATH}))?")

# Reasons by the name of the library's error; its own messages are pages long.
_REASONS = {
    "GatedRepoError": "it is gated: accept its terms on its page, then log in with hf auth login",
    "RepositoryNotFoundError": "the repository does not exist or is private: log in with hf auth login",
    "RevisionNotFoundError": "it has no such revision",
    "OfflineModeIsEnabled": "it is not in the local cache, and HF_HUB_OFFLINE is set",
    "LocalEntryNotFoundError": "it is not in the local cache, and the hub cannot be reached (is HF_HUB_OFFLINE set?)",
}


def locate(path: str | os.PathLike[str], variant: str | None = None) -> Path:
    """Returns a path unchanged, or the local path of a model on the hub, downloading it if necessary.

    A string that begins with `hf:` is a name on the hub.  So is a string `org/name`, unless it can be a local path: it
    exists, a folder `org` exists, or it ends like a weights file.  A `Path` is never a name on the hub; commands pass
    a `Path`, so that a mistyped path does not download an unknown model.  Anything else is returned unchanged.

    Args:
      path: Path, or name on the hub.
      variant: Variant of a diffusers folder to download; see `flax_vae.convert.weights.open_weights`.

    Raises:
      FileNotFoundError: If the hub does not provide the model, if `huggingface_hub` is not installed, or if a `Path`
        does not exist and has the form of a name on the hub.
    """
    text = path.as_posix() if isinstance(path, PurePath) else os.fspath(path)
    if text.startswith(PREFIX):
        return _download(text, variant)
    if Path(path).exists() or not _REPOSITORY.fullmatch(text):
        return Path(path)
    local = is_weights_file(text) or Path(text).parent.is_dir()
    if local or not isinstance(path, str):
        raise FileNotFoundError(f"{path} does not exist; for a model on the Hugging Face hub, write {PREFIX}{text}")
    return _download(PREFIX + text, variant)


def _download(text: str, variant: str | None) -> Path:
    name = _NAME.fullmatch(text.removeprefix(PREFIX))
    if name is None:
        raise FileNotFoundError(
            f"{text} is not a name on the Hugging Face hub; expected hf:org/name[/folder or file][@revision]"
        )
    with needed(f"{text} is on the Hugging Face hub, which needs huggingface_hub", "hub", raises=FileNotFoundError):
        from huggingface_hub import snapshot_download
    inside = name["inside"] or ""
    try:
        snapshot = Path(
            snapshot_download(name["repository"], revision=name["revision"], allow_patterns=_patterns(inside, variant))
        )
    except Exception as error:  # errors of the network, of the hub and of its cache have no common base
        raise FileNotFoundError(f"{text}: download from the Hugging Face hub failed: {_reason(error)}") from error
    place = snapshot / inside
    repository = f"{name['repository']} on the Hugging Face hub"
    if is_weights_file(inside):
        if not place.is_file():
            raise FileNotFoundError(f"{text}: {repository} has no file {inside}")
    elif not any(found for pattern in _patterns("", variant)[1:] for found in place.glob(pattern)):
        there = f"folder {inside} with" if inside else "root with"
        of = "" if variant is None else f"of the variant {variant!r} and "
        where = f"{PREFIX}{name['repository']}"
        raise FileNotFoundError(
            f"{text}: {repository} has no {there} weights {of}of a known name; name a folder or a file of it, such as "
            f"{where}/vae or {where}/FILE.safetensors"
        )
    return place


def _patterns(inside: str, variant: str | None) -> list[str]:
    """Returns the files to download: one file and those it needs, or every readable file of a folder."""
    if not is_weights_file(inside):
        files = FILES if variant is None else [pattern.format(variant) for pattern in _VARIANT]
        return [f"{inside}/{file}" if inside else file for file in files]
    folder = inside.rpartition("/")[0]
    config = f"{folder}/config.json" if folder else "config.json"
    shards = [inside.partition(".index")[0].rpartition(".")[0] + "-*"] if is_index(inside) else []
    return [inside, config, *shards]


def _reason(error: Exception) -> str:
    for kind in type(error).__mro__:
        if kind.__name__ in _REASONS:
            return _REASONS[kind.__name__]
    return next(filter(None, (line.strip() for line in str(error).splitlines())), type(error).__name__)
