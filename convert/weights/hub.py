"""Names on the Hugging Face hub where a path was expected: `hf:org/name[/folder or file][@revision]`.

`huggingface_hub` is an extra and is loaded when such a name is met, and for nothing else.
"""

import os
import re
from pathlib import Path, PurePath

from flax_vae.convert.extras import needed
from flax_vae.convert.formats import is_index
from flax_vae.convert.weights.open import is_weights_file

PREFIX = "hf:"

# No more than `open_weights` would take from such a folder, and of several copies of the same weights the one in full
# precision: repositories keep pickles and half precision beside it.
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

# What went wrong, by the library's own errors, whose words are pages of advice.
_REASONS = {
    "GatedRepoError": "it is gated: accept its terms on its page, then log in with hf auth login",
    "RepositoryNotFoundError": "there is no such repository, or it is private: log in with hf auth login",
    "RevisionNotFoundError": "it has no such revision",
    "OfflineModeIsEnabled": "it is not in the local cache, and HF_HUB_OFFLINE is set",
    "LocalEntryNotFoundError": "it is not in the local cache, and the hub cannot be reached (is HF_HUB_OFFLINE set?)",
}


def locate(path: str | os.PathLike[str], variant: str | None = None) -> Path:
    """Returns the path itself, or where a model of the hub lies after it was downloaded, if need be.

    What begins with `hf:` is a name on the hub.  A string `org/name` is one too if nothing on this machine could be
    meant: it does not exist, nor does a folder `org`, and it does not end as a file of weights does.  A `Path` never
    is: commands pass those, so that no mistyped path becomes the model of a stranger.  Anything else is returned as it
    is, for whoever opens it to refuse.

    Args:
      path: a path, or a name on the hub.
      variant: which files of a diffusers folder are downloaded; see `flax_vae.convert.weights.open_weights`.

    Raises:
      FileNotFoundError: if it is a name on the hub, and `huggingface_hub` is not installed or did not get it; or if it
        could be one and is not taken for one.
    """
    text = path.as_posix() if isinstance(path, PurePath) else os.fspath(path)
    if text.startswith(PREFIX):
        return _download(text, variant)
    if Path(path).exists() or not _REPOSITORY.fullmatch(text):
        return Path(path)
    local = is_weights_file(text) or Path(text).parent.is_dir()
    if local or not isinstance(path, str):
        raise FileNotFoundError(
            f"{path} does not exist; if a model on the Hugging Face hub is meant, write {PREFIX}{text}"
        )
    return _download(PREFIX + text, variant)


def _download(text: str, variant: str | None) -> Path:
    name = _NAME.fullmatch(text.removeprefix(PREFIX))
    if name is None:
        raise FileNotFoundError(
            f"{text} is no name on the Hugging Face hub; write hf:org/name[/folder or file][@revision]"
        )
    with needed(f"{text} is on the Hugging Face hub, which needs huggingface_hub", "hub", raises=FileNotFoundError):
        from huggingface_hub import snapshot_download
    inside = name["inside"] or ""
    try:
        snapshot = Path(
            snapshot_download(name["repository"], revision=name["revision"], allow_patterns=_patterns(inside, variant))
        )
    except Exception as error:  # of the network, of the hub, of its cache: they share no parent
        raise FileNotFoundError(f"{text}: the Hugging Face hub did not give it: {_reason(error)}") from error
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
            f"{text}: {repository} has no {there} weights {of}of a known name; give a folder or a file of it, such as "
            f"{where}/vae or {where}/FILE.safetensors"
        )
    return place


def _patterns(inside: str, variant: str | None) -> list[str]:
    """What to download of a repository: a file and what belongs to it, or what may be read of a folder."""
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
