"""The architecture in the header of a safetensors file.

It makes a single file complete, with the scale, shift and padding that no shape tells.  In a folder it guards the
`config.json` beside the weights, in which nothing else would show a flipped bit, or the configuration of another model.
Other programs pass over it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from flax_vae.convert.architecture import AutoEncoderParams
from flax_vae.convert.errors import FileError
from flax_vae.convert.files import loads_object

KEY = "autoencoder"
DIGEST = "autoencoder_sha256"  # of the text under `KEY`; earlier versions wrote none


def write_architecture(params: AutoEncoderParams) -> dict[str, str]:
    """Returns the entries of the metadata that say what the tensors are."""
    text = json.dumps(params.to_dict(), allow_nan=False)
    return {KEY: text, DIGEST: _digest(text)}


def read_architecture(path: object, metadata: Mapping[str, str]) -> AutoEncoderParams | None:
    """Returns what `write_architecture` left in the metadata of the file `path`, or None where it left nothing.

    Raises:
      FileError: if the entry is there and does not describe an architecture, or is not as it was written.
    """
    if DIGEST in metadata and _digest(metadata.get(KEY, "")) != metadata[DIGEST]:
        raise FileError(f"{path}: the entry {KEY!r} of its metadata is not as it was written; copy the file again")
    if KEY not in metadata:
        return None
    try:
        return AutoEncoderParams.from_dict(loads_object(metadata[KEY].encode()))
    except (TypeError, ValueError) as error:
        raise FileError(f"{path}: the entry {KEY!r} of its metadata describes no autoencoder: {error}") from error


def check_config(
    config: Path, found: AutoEncoderParams, weights: Path, metadata: Mapping[str, str], *, idle: bool = True
) -> None:
    """Refuses a configuration that is not the one that was written with the weights.

    Args:
      config: the file of the configuration.
      found: the architecture in it.
      weights: the file of the weights beside it.
      metadata: of that file; nothing is checked if no architecture is in it.
      idle: whether fields that change nothing that is computed must agree too.

    Raises:
      FileError: that names the fields, both values, and what to do.
    """
    written = read_architecture(weights, metadata)
    if written is None:
        return
    before, now = vars(written), vars(found)
    names = [name for name in before if before[name] != now[name]] if idle else written.differences(found)
    if names:
        differ = "; ".join(f"{name} is {now[name]!r}, and was written as {before[name]!r}" for name in names)
        command = f"from flax_vae.convert.weights.folder import write_config; write_config({str(config.parent)!r})"
        raise FileError(
            f"{config} is not the configuration that {weights.name} was written with: {differ}. Put the old value "
            f'back, or, if the new one is meant, run: python -c "{command}"'
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
