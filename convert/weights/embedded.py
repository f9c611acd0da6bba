"""The architecture in the header of a safetensors file.

It completes a single file with the scale, shift and padding that shapes do not determine.  In a folder it protects the
`config.json` beside the weights: a flipped bit or the configuration of another model is detected.  Other programs
ignore it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from flax_vae.convert.architecture import Architecture, architecture_from_dict
from flax_vae.convert.errors import FileError
from flax_vae.convert.files import loads_object

KEY = "autoencoder"
DIGEST = "autoencoder_sha256"  # digest of the text under `KEY`; earlier versions wrote none


def write_architecture(params: Architecture) -> dict[str, str]:
    """Returns the metadata entries that describe the architecture."""
    text = json.dumps(params.to_dict(), allow_nan=False)
    return {KEY: text, DIGEST: _digest(text)}


def read_architecture(path: object, metadata: Mapping[str, str]) -> Architecture | None:
    """Returns the architecture in the metadata of the file `path`, or None if there is none.

    Raises:
      FileError: If the entry does not describe an architecture, or was changed after it was written.
    """
    if DIGEST in metadata and _digest(metadata.get(KEY, "")) != metadata[DIGEST]:
        raise FileError(
            f"{path}: the entry {KEY!r} of its metadata is not as it was written; copy the file again", path=path
        )
    if KEY not in metadata:
        return None
    try:
        return architecture_from_dict(loads_object(metadata[KEY].encode()))
    except (TypeError, ValueError) as error:
        raise FileError(
            f"{path}: the entry {KEY!r} of its metadata describes no autoencoder: {error}", path=path
        ) from error


def check_config(
    config: Path, found: Architecture, weights: Path, metadata: Mapping[str, str], *, idle: bool = True
) -> None:
    """Checks that a configuration is the one that was written with the weights.

    Args:
      config: Path of the configuration.
      found: Architecture in the configuration.
      weights: Path of the weights beside it.
      metadata: Metadata of the weights; without an architecture in it, nothing is checked.
      idle: Whether fields that do not change the computation must agree too.

    Raises:
      FileError: If they differ; names the fields, both values and the remedy.
    """
    written = read_architecture(weights, metadata)
    if written is None:
        return
    before, now = vars(written), vars(found)
    names = [name for name in before | now if before.get(name) != now.get(name)] if idle else written.differences(found)
    if names:
        differ = "; ".join(f"{name} is {now.get(name)!r}, and was written as {before.get(name)!r}" for name in names)
        command = f"from flax_vae.convert.weights.folder import write_config; write_config({str(config.parent)!r})"
        raise FileError(
            f"{config} is not the configuration that {weights.name} was written with: {differ}. Put the old value "
            f'back, or, if the new one is meant, run: python -c "{command}"',
            path=config,
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
