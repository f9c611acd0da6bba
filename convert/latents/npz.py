"""Shards in NumPy's own format: `numpy.load("latents-00000.npz")` gives arrays with one row for each entry.

All latents of a file have one size, so a data set has at least one file for each size.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flax_vae.convert.errors import ArgumentError
from flax_vae.convert.files import atomic_file
from flax_vae.convert.latents.index import Storage
from flax_vae.convert.latents.sealed import SealedShards, file_sha256
from flax_vae.convert.latents.shard import ShardContent

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time of a zip file, so that equal arrays give equal bytes


class NpzShards(SealedShards):
    """Shards in `.npz` files, not compressed.

    The arrays are `latents` of shape (n, h, w, c), or `mean` and `logvar` or `std`; `names`, strings; `numbers` of the
    images in the source; `heights` and `widths` of the encoded images in pixels; `flipped`; and where the source has
    them `labels`, -1 for none, and `captions`, strings.
    """

    storage: Storage = "npz"
    one_size = True
    data = r"latents-\d{5,}\.npz"

    def require(self, dtype: str) -> None:
        """Checks that NumPy can store the dtype."""
        if dtype == "bfloat16":
            raise ArgumentError(
                "NumPy's files have no bfloat16; store float16 or float32 (--store-dtype), or choose another format",
                field="dtype",
                value=dtype,
            )

    def write_data(self, folder: Path, number: int, content: ShardContent) -> dict[str, str]:
        """Writes one file."""
        name = f"latents-{number:05d}.npz"
        with atomic_file(folder / name, force=True) as temporary:
            _save(temporary, _arrays(content))
            return {name: file_sha256(temporary)}


def _arrays(content: ShardContent) -> dict[str, np.ndarray]:
    entries = content.entries
    arrays = {
        "latents" if part == "latent" else part: np.concatenate([batch[part] for batch in content.latents])
        for part in content.latents[0]
    }
    arrays |= {
        "names": np.array([entry.name for entry in entries]),
        "numbers": np.array([entry.number for entry in entries], np.int64),
        "heights": np.array([entry.height for entry in entries], np.int32),
        "widths": np.array([entry.width for entry in entries], np.int32),
        "flipped": np.array([entry.flipped for entry in entries], bool),
    }
    if (labels := content.labels) is not None:
        arrays["labels"] = labels
    if (captions := content.captions) is not None:
        arrays["captions"] = np.array(captions)
    return arrays


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Does what `numpy.savez` does, whose files may hold the time of writing."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True) as file:
                header = io.BytesIO()
                np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
                file.write(header.getvalue())
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
