"""Reads weights split into shards, with an index that names the shard of each tensor.

The index is untrusted: each name in it must be the plain name of a file in the folder of the index.
"""

import os
import re
from pathlib import Path

import numpy as np

from flax_vae.convert.errors import FileError
from flax_vae.convert.files import read_object
from flax_vae.convert.formats.content import foreign
from flax_vae.convert.formats.pytorch import read_pickle
from flax_vae.convert.formats.safetensors import list_tensors, read_tensors

# Form of the shards' names; diffusers writes the name of a variant after `index`.
_INDEX = re.compile(r"(?P<form>\.safetensors|\.bin)\.index(\.[\w-]+)?\.json")


def is_index(name: str) -> bool:
    """Returns whether a file of this name is an index: `*.safetensors.index.json` or `*.bin.index.json`.

    Args:
      name: Name of the file.
    """
    return _INDEX.search(name) is not None and name.endswith(".json")


def read_shards(path: str | os.PathLike[str], *, verify: bool = True) -> dict[str, np.ndarray]:
    """Returns arrays by name from all shards, sorted by name.

    Args:
      path: Path of the index; see `is_index`.
      verify: Whether to compare digests; see `flax_vae.convert.formats.read_tensors`.

    Raises:
      FileNotFoundError: If the index does not exist.
      FileError: If the index or a shard is damaged or missing, if a name in the index leaves its folder, or if the
        shards do not hold exactly the tensors of the index; one error lists every difference.
    """
    index = Path(path)
    places = read_shard_index(index)
    shards = {name: _locate(index, name, _form(index)) for name in sorted(set(places.values()))}
    pickled = _form(index) != ".safetensors"
    held = {name: read_pickle(shard) for name, shard in shards.items()} if pickled else {}
    wrong = []
    for name, shard in shards.items():
        expected = {tensor for tensor, place in places.items() if place == name}
        found = set(held[name] if pickled else list_tensors(shard))
        wrong += [f"  missing     {tensor} is not in {name}" for tensor in sorted(expected - found)]
        wrong += [
            f"  unexpected  {tensor} is in {name}{_elsewhere(places, tensor)}" for tensor in sorted(found - expected)
        ]
    if wrong:
        raise FileError(
            "\n".join([f"{index} does not describe its {len(shards)} shards:", *wrong, "download them again"])
        )
    tensors = {}
    for name, shard in shards.items():
        tensors |= held[name] if pickled else read_tensors(shard, verify=verify)
    return dict(sorted(tensors.items()))


def read_shard_index(path: str | os.PathLike[str]) -> dict[str, str]:
    """Returns the shard of each tensor, as listed in the index; does not check the shards.

    Args:
      path: Path of the index.

    Raises:
      FileNotFoundError: If the index does not exist.
      FileError: If it is not an index.
    """
    index = Path(path)
    if not index.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected an index of shards")
    try:
        places = read_object(index, 1 << 28).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ValueError("it has no 'weight_map' that names a file for each tensor")
        for tensor, name in places.items():
            if not isinstance(name, str):
                raise ValueError(f"it places {tensor!r} in {name!r}, which is not a file name")
    except ValueError as error:
        raise FileError(
            foreign(path, "the index of shards") or f"{path} is not the index of {_form(index)[1:]} files: {error}",
            path=path,
        ) from error
    return places


def _form(index: Path) -> str:
    found = _INDEX.search(index.name)
    return found["form"] if found else ".safetensors"


def _locate(index: Path, name: str, form: str) -> Path:
    # Backslash, colon and NUL are refused on every system, because some systems interpret them.
    if name in ("", ".", "..") or set(name) & set("/\\:\0") or not name.endswith(form):
        raise FileError(
            f"{index} names the shard {name!r}; expected the plain name of a {form} file beside the index", path=index
        )
    shard = index.parent / name
    if not shard.exists():
        raise FileError(f"{index} names the shard {name!r}, which does not exist; download it too", path=index)
    real = shard.resolve()
    if real.parent not in (index.parent.resolve(), index.resolve().parent, *_hub_blobs(index)):
        raise FileError(
            f"the shard {shard} is a link to {real}, outside its folder; put the file itself there if that is meant"
        )
    return shard


def _hub_blobs(index: Path) -> list[Path]:
    """Returns where the Hugging Face hub's cache keeps the files that its snapshots link to: `blobs`."""
    folders = index.parent.absolute().parents
    return [folder.parent.resolve() / "blobs" for folder in folders if folder.name == "snapshots"]


def _elsewhere(places: dict[str, str], tensor: str) -> str:
    return f", and belongs in {places[tensor]}" if tensor in places else ", and is not in the index"
