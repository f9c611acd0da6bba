"""Recognises weights files by their names, and chooses among several copies of the same weights in one folder."""

import re
from collections.abc import Collection
from pathlib import Path, PurePath
from typing import Literal

from flax_vae.convert.errors import FileError
from flax_vae.convert.files import PICKLES
from flax_vae.convert.formats import is_index
from flax_vae.convert.weights.folder import CONFIG, WEIGHTS, is_own_config

Kind = Literal[
    "safetensors", "sharded safetensors", "pickle", "sharded pickles", "flax msgpack", "diffusers folder",
    "model folder", "orbax", "two halves",
]  # fmt: skip
ACCEPTED = "*.safetensors, *.sft, *.pt, *.pth, *.ckpt, *.bin, *.msgpack, *.safetensors.index.json, *.bin.index.json"
_SUFFIXES: dict[str, Kind] = {
    ".safetensors": "safetensors", ".sft": "safetensors", ".msgpack": "flax msgpack",
    **dict.fromkeys(PICKLES, "pickle"),
}  # fmt: skip

# Names of diffusers' weights files: diffusion_pytorch_model.safetensors, or with a variant
# diffusion_pytorch_model.fp16.safetensors.  An index has the variant after `index`, a shard before or after its number.
_DIFFUSERS = re.compile(
    r"diffusion_(pytorch|flax)_model(\.(?P<variant>[\w-]+?))?(?P<shard>-\d+-of-\d+)?(\.(?P<behind>[\w-]+))?"
    r"\.(?P<form>safetensors|bin|msgpack)(?P<index>\.index(\.(?P<last>[\w-]+))?\.json)?"
)
# Order of preference among the files of one variant: as in diffusers, except that msgpack needs no PyTorch.
_ORDER = ("safetensors.index", "safetensors", "msgpack", "bin.index", "bin")

# The two files of a tiny autoencoder, as its authors publish it: taesd_encoder.pth beside taesd_decoder.pth.
_HALF = re.compile(r"(?P<stem>.*)(?P<half>encoder|decoder)(?P<end>\.(safetensors|sft|pth|pt))", re.DOTALL)


def is_weights_file(name: str) -> bool:
    """Returns whether a file of this name holds weights, or is the index of such files."""
    return kind_of(name) is not None


def is_diffusers_file(name: str) -> bool:
    """Returns whether a file has one of the names that diffusers gives to weights, shards and indices."""
    return _DIFFUSERS.fullmatch(name) is not None


def variant_of(name: str) -> str | None:
    """Returns the variant in the name of a file that diffusers wrote, `"fp16"` for example, or None."""
    match = _DIFFUSERS.fullmatch(name)
    return match and (match["variant"] or match["behind"] or match["last"])


def kind_of(name: str) -> Kind | None:
    """Returns the kind of a weights file by its name, or None for other files."""
    if is_index(name):
        return "sharded safetensors" if ".safetensors." in name else "sharded pickles"
    return _SUFFIXES.get(PurePath(name).suffix.lower())


def choose_models(
    folder: Path, inside: Collection[str], variant: str | None = None, label: str | None = None
) -> list[str]:
    """Returns the weights files in a folder that are models: ours, and one of those that diffusers wrote.

    Where there is neither, the encoders that lie beside a decoder of the same name; see `pair_of`.

    Args:
      folder: Folder, in which the `config.json` is read.
      inside: Names of the files in it; of them only `config.json` must exist.
      variant: Variant of diffusers' files; None chooses the files without one, or else the only variant.
      label: Name of the folder for messages; None for its path.

    Raises:
      FileError: If there is no such variant, or only several named ones, or only shards without their index.
    """
    ours = WEIGHTS in inside and CONFIG in inside and is_own_config(folder / CONFIG)
    theirs = _choose_diffusers_file(label or folder, inside, variant)
    return [WEIGHTS] * ours + ([] if theirs is None else [theirs]) or [
        name for name in sorted(inside) if (pair := pair_of(name)) and name == pair[0] and pair[1] in inside
    ]


def pair_of(name: str) -> tuple[str, str] | None:
    """Returns the names of an encoder's and a decoder's file, given one of them, or None for another name."""
    match = _HALF.fullmatch(name)
    return match and (f"{match['stem']}encoder{match['end']}", f"{match['stem']}decoder{match['end']}")


def _choose_diffusers_file(folder: str | Path, inside: Collection[str], variant: str | None) -> str | None:
    variants: dict[str, dict[str, str]] = {}
    shards_there = []
    for name in inside:
        match = _DIFFUSERS.fullmatch(name)
        if match and match["shard"]:
            shards_there.append(name)
        elif match:
            form = match["form"] + (".index" if match["index"] else "")
            variants.setdefault(variant_of(name) or "", {})[form] = name
    if shards_there and not variants:
        raise FileError(
            f"{folder} holds shards ({', '.join(shards_there)}) without their index; copy the file that ends in "
            ".index.json too",
            path=folder,
        )
    named = ", ".join(filter(None, variants))
    if variant is not None and variant not in variants:
        raise FileError(f"{folder} holds no variant {variant!r}; found {named or 'none that has a name'}", path=folder)
    if variant is None and "" not in variants and len(variants) > 1:
        raise FileError(
            f"{folder} holds several variants ({named}); choose one with variant=, or --variant of "
            "flax-vae-convert, or name its file",
            path=folder,
        )
    if not variants:
        return None
    forms = variants["" if variant is None and "" in variants else variant or next(iter(variants))]
    return next(forms[form] for form in _ORDER if form in forms)
