"""Opens weights of any kind: a file or a folder in, named arrays out.

The kind follows from the name and the content, and is never guessed: a folder that could hold several models is refused
with a list of them.  The table of weights interprets the names of the tensors.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flax_vae.convert.architecture import Architecture
from flax_vae.convert.errors import ArgumentError, FileError
from flax_vae.convert.files import address_below, is_address, note_on_number, read_object, require_regular
from flax_vae.convert.formats import (
    ArrayLike,
    content_of,
    read_metadata,
    read_msgpack,
    read_pickle,
    read_shards,
    read_tensors,
)
from flax_vae.convert.table import PAIR_LAYOUT, is_half, join_halves
from flax_vae.convert.weights import orbax_steps
from flax_vae.convert.weights.averages import choose_in_ldm
from flax_vae.convert.weights.diffusers_config import kept_keys, read_diffusers_file
from flax_vae.convert.weights.embedded import check_config, read_architecture
from flax_vae.convert.weights.file_names import ACCEPTED, Kind, choose_models, is_diffusers_file, kind_of, pair_of
from flax_vae.convert.weights.folder import CONFIG, LAYOUT, WEIGHTS, is_own_config, load_folder
from flax_vae.convert.weights.hub import HubName, download, find
from flax_vae.convert.weights.run_folder import find_export, is_run, local_weights


@dataclass(frozen=True)
class WeightFile:
    """Weights as read from a file or folder, before their layout and architecture are identified.

    Attributes:
      path: File or folder of the tensors; for a diffusers folder, the file in it.
      kind: Kind of the file or folder.
      tensors: Arrays by their names in the file, read from disk when used.
      config: Architecture, if one is stored with the weights.
      metadata: Strings in the header of a safetensors file.
      kept: Entries of a diffusers configuration beyond the architecture; see
        `flax_vae.convert.weights.diffusers_config.kept_keys`.
      averaged: Whether the weights are the moving average of training; None without an average.
      notes: Sentences about checks that were not possible.
      layout: Layout of the tensors, if the kind determines it.
    """

    path: Path
    kind: Kind
    tensors: Mapping[str, ArrayLike]
    config: Architecture | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, Any] = field(default_factory=dict)
    averaged: bool | None = None
    notes: tuple[str, ...] = ()
    layout: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of the tensors; none for a folder that holds more than files of weights."""
        pair = pair_of(self.path.name) if self.kind == "two halves" else None
        paths = [self.path] if pair is None else [self.path.with_name(name) for name in pair]
        return tuple(path for path in paths if path.is_file())


def open_weights(
    path: str | os.PathLike[str],
    *,
    verify: bool = True,
    variant: str | None = None,
    raw_weights: bool = False,
    revision: str | None = None,
    subfolder: str | None = None,
) -> WeightFile:
    """Opens weights of any kind.

    Accepts a safetensors file, the index of several, a PyTorch checkpoint, a msgpack file of diffusers' former Flax
    models, a diffusers folder or a file in it, a model folder of this package or the file in it, a checkpoint of this
    package (the folder of one step, or the `checkpoints` folder if it holds only one), the directory of a finished run,
    one of the two files of a tiny autoencoder or the folder of both, and models on the Hugging Face hub (see
    `flax_vae.convert.weights.hub.find`).  Safetensors files and pickles are distinguished by content, not by name.

    A diffusers folder may hold several copies of the same weights.  The default variant is the one without a name;
    safetensors files are preferred over msgpack, and msgpack over pickles, which need PyTorch.

    Args:
      path: File, folder, name on the hub, or address of a file or folder in a bucket, which is copied first.
      verify: Whether to compare digests; see `flax_vae.convert.formats.read_tensors` and
        `flax_vae.convert.weights.orbax_steps.read_step`.
      variant: Name of the variant to take from a diffusers folder, `"fp16"` for example.
      raw_weights: Whether to take the raw weights from a training checkpoint, of this package or of LDM, that also
        holds their moving average.
      revision: Branch, tag or commit of a model on the hub; None for the one in the name, or `main`.
      subfolder: Folder inside `path`.

    Returns:
      Opened weights, whose arrays are read when they are used.

    Raises:
      FileNotFoundError: If it, or a part of it, does not exist, or the hub does not provide it.
      FileError: If it is damaged, of an unknown kind, or ambiguous; the message lists what was found.
      ConversionError: If its configuration describes an architecture of another family, or the weights of a model
        folder do not match its configuration.
      ValueError: If `revision` is given for a local path, or `revision` or `subfolder` twice.
    """
    if is_address(path):
        if revision:
            raise ArgumentError(
                f"revision={revision!r} is of a model on the Hugging Face hub; leave it out for {path}",
                field="revision",
            )
        with local_weights(address_below(path, subfolder) if subfolder else path) as copy:
            return open_weights(copy, verify=verify, variant=variant, raw_weights=raw_weights)
    place = find(path, revision, subfolder)
    if isinstance(place, HubName):
        place, variant = download(place, variant), None
    if not place.exists():
        raise FileNotFoundError(f"{place} does not exist; give a folder, or a file of {ACCEPTED}")
    source = _open(place, verify, variant, raw_weights)
    tensors, averaged = choose_in_ldm(source.path, source.tensors, raw_weights)
    return source if averaged is None else replace(source, tensors=tensors, averaged=averaged)


def _open(path: Path, verify: bool, variant: str | None, raw_weights: bool) -> WeightFile:
    if path.is_dir():
        return _open_folder(path, verify, variant, raw_weights)
    require_regular(path)
    if variant is not None:
        raise FileError(f"variant={variant!r} chooses in a folder, and {path} is a file; leave it out")
    return _open_file(path, verify)


def _open_file(path: Path, verify: bool) -> WeightFile:
    if is_diffusers_file(path.name):
        return _open_diffusers(path, verify)
    if path.name == WEIGHTS and path.with_name(CONFIG).is_file() and is_own_config(path.with_name(CONFIG)):
        return _open_model(path.parent, verify)
    source, pair = _read_file(path, None, verify), pair_of(path.name)
    if pair is None or not is_half(source.tensors):
        return source
    return _open_pair(path.with_name(pair[0]), path.with_name(pair[1]), verify)


def _open_folder(folder: Path, verify: bool, variant: str | None, raw_weights: bool) -> WeightFile:
    if (folder / orbax_steps.MARK).is_file():
        return _open_step(folder, verify, raw_weights)
    if is_run(folder):
        return _open_model(find_export(folder), verify)
    steps = orbax_steps.list_step_folders(folder)
    if len(steps) > 1:
        names = ", ".join(step.name for step in steps)
        raise FileError(
            f"{folder} holds several checkpoints ({names}); give one of them, the newest is {steps[-1]}", path=folder
        )
    inside = sorted(entry.name for entry in folder.iterdir())
    openers: dict[str, Callable[[], WeightFile]] = {
        step.name: lambda s=step: _open_step(s, verify, raw_weights) for step in steps
    }
    openers |= {name: lambda f=folder / name: _open_file(f, verify) for name in choose_models(folder, inside, variant)}
    if len(openers) == 1:
        (opener,) = openers.values()
        return opener()
    if openers:
        raise FileError(f"{folder} holds several models; give one of them: {', '.join(openers)}", path=folder)
    raise FileError(f"{folder} holds no model that is known by its name{_hint(folder, inside)}", path=folder)


def _hint(folder: Path, inside: list[str]) -> str:
    """Returns the end of an error message: what to open instead of the folder."""
    if "model_index.json" in inside and (folder / "vae").is_dir():
        return f"; its autoencoder is in {folder / 'vae'}"
    files = [name for name in inside if kind_of(name) is not None]
    if files:
        return f"; give one of its files: {', '.join(files)}"
    return f"; give a folder with {CONFIG} beside {WEIGHTS} or diffusion_pytorch_model.*, or a file of {ACCEPTED}"


def _open_model(folder: Path, verify: bool) -> WeightFile:
    config, tensors = load_folder(folder, verify=verify)
    return WeightFile(folder / WEIGHTS, "model folder", tensors, config, read_metadata(folder / WEIGHTS), layout=LAYOUT)


def _open_step(step: Path, verify: bool, raw_weights: bool) -> WeightFile:
    config, tensors, averaged = orbax_steps.read_weights(step, raw_weights=raw_weights, verify=verify)
    note = note_on_number(step) if verify else None
    return WeightFile(step, "orbax", tensors, config, averaged=averaged, notes=(note,) if note else ())


def _open_diffusers(path: Path, verify: bool) -> WeightFile:
    config = path.with_name(CONFIG)
    if not config.is_file():  # a file that was moved out of its folder is a plain weights file
        return _read_file(path, None, verify)
    source = _read_file(path, read_diffusers_file(config), verify)
    if verify and source.config is not None:
        check_config(config, source.config, path, source.metadata, idle=False)
    kept = kept_keys(read_object(config))
    return WeightFile(path, "diffusers folder", source.tensors, source.config, source.metadata, kept)


def _open_pair(encoder: Path, decoder: Path, verify: bool) -> WeightFile:
    for path, other in ((encoder, decoder), (decoder, encoder)):
        if not path.is_file():
            raise FileNotFoundError(f"{other} holds one half of a tiny autoencoder; put {path.name} beside it")
    one, two = (_read_file(path, None, verify) for path in (encoder, decoder))
    if one.config != two.config:
        raise FileError(f"{encoder} and {decoder.name} were not written together: their architectures differ")
    tensors = join_halves(one.tensors, two.tensors)
    return WeightFile(encoder, "two halves", tensors, one.config, one.metadata, layout=PAIR_LAYOUT)


def _read_file(path: Path, config: Architecture | None, verify: bool) -> WeightFile:
    content = content_of(path)
    kind = kind_of(path.name)
    if content is not None and content.kind != kind:
        if content.kind is None:
            raise FileError(f"{path} is {content.what}, not weights; {content.remedy}", path=path)
        # The content overrides a wrong name, but a pickle must at least have the name of a weights file.
        kind = content.kind if content.kind == "safetensors" or kind in ("safetensors", "pickle") else kind
    if kind in ("sharded safetensors", "sharded pickles"):
        return WeightFile(path, kind, read_shards(path, verify=verify), config)
    if kind == "safetensors":
        metadata = read_metadata(path)
        config = config or read_architecture(path, metadata)
        return WeightFile(path, kind, read_tensors(path, verify=verify), config, metadata)
    if kind == "pickle":
        return WeightFile(path, kind, read_pickle(path), config)
    if kind == "flax msgpack":
        return WeightFile(path, kind, read_msgpack(path), config)
    raise FileError(f"{path} is of an unknown kind; expected a folder, or a file of {ACCEPTED}", path=path)
