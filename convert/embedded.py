"""The architecture in the header of a single safetensors file, which has no `config.json` beside it.

Other programs pass over it; here it makes the file complete, with the scale, shift and padding that no shape tells.
"""

import json
from collections.abc import Mapping

from convert.architecture import AutoEncoderParams
from convert.errors import FileError
from convert.strict_json import loads_object

KEY = "autoencoder"


def write_architecture(params: AutoEncoderParams) -> dict[str, str]:
    """Returns the entry of the metadata that says what the tensors are."""
    return {KEY: json.dumps(params.to_dict(), allow_nan=False)}


def read_architecture(path: object, metadata: Mapping[str, str]) -> AutoEncoderParams | None:
    """Returns what `write_architecture` left in the metadata of the file `path`, or None where it left nothing.

    Raises:
      FileError: if the entry is there and does not describe an architecture.
    """
    if KEY not in metadata:
        return None
    try:
        return AutoEncoderParams.from_dict(loads_object(metadata[KEY].encode()))
    except (TypeError, ValueError) as error:
        raise FileError(f"{path}: the entry {KEY!r} of its metadata describes no autoencoder: {error}") from error
