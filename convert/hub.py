"""Names on the Hugging Face hub, `org/name` or `org/name/folder`, where a path was expected.

`huggingface_hub` is an extra and is loaded when such a name is met, and for nothing else.
"""

import os
import re
from pathlib import Path

# No more than `open_source` would take from such a folder, and of several copies of the same weights the one in full
# precision: repositories keep pickles and half precision beside it, which would have to be chosen between.
FILES = (
    "config.json",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model-*-of-*.safetensors",
)

_NAME = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(/(?P<folder>[\w-][\w.-]*))?")


def locate(path: str | os.PathLike[str]) -> Path:
    """Returns the path itself where it exists, and otherwise the folder of a model on the hub, downloaded if need be.

    A path that neither exists nor looks like a name on the hub is returned as it is, for whoever opens it to refuse.

    Raises:
      FileNotFoundError: if it looks like a name on the hub, and `huggingface_hub` is not installed or did not get it.
    """
    name = _NAME.fullmatch(os.fspath(path))
    if Path(path).exists() or name is None:
        return Path(path)
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise FileNotFoundError(
            f"{path} does not exist; if it is a model on the Hugging Face hub: pip install 'flax-vae[hub]'"
        ) from error
    folder = name["folder"] or ""
    patterns = [f"{folder}/{file}" if folder else file for file in FILES]
    try:
        snapshot = Path(snapshot_download(name["repository"], allow_patterns=patterns))
    except Exception as error:  # of the network, of the hub, of its cache: they share no parent
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise FileNotFoundError(
            f"{path} does not exist here, and the Hugging Face hub did not give it: {reason}"
        ) from error
    if not (snapshot / folder).is_dir():
        raise FileNotFoundError(f"{name['repository']} on the Hugging Face hub has no {folder}/ with a model in it")
    return snapshot / folder
