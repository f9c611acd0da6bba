"""Reads checkpoints pickled by PyTorch: `.pt`, `.pth`, `.ckpt`, `.bin`.

A pickle is a program.  PyTorch's `weights_only` reader executes none of it: it supports tensors, containers and numbers
and refuses everything else.  PyTorch is imported only when such a file is read.
"""

import contextlib
import os
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from flax_vae.convert.errors import FileError, shorten, shorten_lines
from flax_vae.convert.extras import needed
from flax_vae.convert.files import PICKLES, require_regular
from flax_vae.convert.formats.content import incomplete
from flax_vae.convert.formats.header import is_text
from flax_vae.convert.formats.pickle_bounds import check_bounds

if TYPE_CHECKING:
    import torch


# Keys that PyTorch Lightning writes beside `state_dict`; none holds weights of the model.
BOOKKEEPING = {
    *("epoch", "global_step", "pytorch-lightning_version", "loops", "callbacks", "optimizer_states", "lr_schedulers"),
    *("hparams_name", "hyper_parameters", "hparams_type", "datamodule_hparams_name", "datamodule_hyper_parameters"),
    *("native_amp_scaling_state", "amp_scaling_state", "MixedPrecision", "checkpoint_callback_best_model_path"),
    *("checkpoint_callback_best_model_score", "early_stop_callback_wait", "early_stop_callback_patience"),
}

# Classes that this bookkeeping uses in the published Stable Diffusion and latent-diffusion checkpoints.  The reader
# replaces each by `_Inert`, so they are neither imported nor called.
_INERT = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|omegaconf)\..*|numpy\.(_?core\.multiarray\.scalar|dtype)"
    r"|numpy\.dtypes\.\w+|_codecs\.encode|typing\.\w+|pathlib\.\w+|argparse\.Namespace"
)

_DEPTH, _MOST = 8, 500_000  # maximum nesting of dictionaries, and of their items in total
_REMEDY = "save only the dictionary of weights: torch.save(model.state_dict(), ...)"
_SHOWN = 20  # lines of one message
# Maximum ratio of a tensor's size to its stored bytes: a tensor with a stride of 0 repeats its values.
_MOST_EXPANDED = 1000

# Dtypes that numpy has no name for, as integers of equal width and as ml_dtypes.
BIT_PATTERNS = {
    "bfloat16": ("int16", ml_dtypes.bfloat16),
    "float8_e4m3fn": ("uint8", ml_dtypes.float8_e4m3fn),
    "float8_e5m2": ("uint8", ml_dtypes.float8_e5m2),
    "float8_e4m3fnuz": ("uint8", ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2fnuz": ("uint8", ml_dtypes.float8_e5m2fnuz),
}


def read_pickle(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns arrays by name, sorted by name, bit for bit as stored.

    The arrays are read-only views of the file where its format allows it (all files of PyTorch >= 1.6).  Tensors in
    nested dictionaries have joined names, `"ema.encoder.conv_in.bias"`; if only one dictionary holds tensors, as
    `state_dict` does in a PyTorch Lightning file, its name is left out.  Ignores everything that is not a tensor.

    Args:
      path: Path of the file.

    Raises:
      FileNotFoundError: If the file does not exist.
      FileError: If PyTorch is not installed, or if the file is damaged, holds code, holds no named tensors, or holds
        tensors that cannot be arrays.
    """
    require_regular(path)
    arrays = {}
    for name, tensor in sorted(_tensors_in(path, _load(path)).items()):
        try:
            arrays[name] = to_array(tensor)
        except TypeError as error:
            raise FileError(
                f"{path}: tensor {name!r} has dtype {tensor.dtype}, which numpy cannot hold; save it in another dtype",
                path=path,
            ) from error
        arrays[name].flags.writeable = False
    return arrays


def to_array(tensor: "torch.Tensor") -> np.ndarray:
    """Returns a tensor as an array, bit for bit, as a view if it is on the CPU.

    Args:
      tensor: Tensor on any device.
    """
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    name = str(tensor.dtype).removeprefix("torch.")
    if name in BIT_PATTERNS:
        import torch

        integers, dtype = BIT_PATTERNS[name]
        return tensor.view(getattr(torch, integers)).numpy().view(dtype)
    return tensor.numpy()


class _Inert:
    """Replaces an object that is not needed; accepts any arguments and does nothing."""

    def __init__(self, *args: object):
        pass

    def __setstate__(self, state: object):
        pass


def _load(path: str | os.PathLike[str]) -> Any:
    try:
        check_bounds(path)
    except (ValueError, OSError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise FileError(f"{path} is not a PyTorch checkpoint that can be read: {error}", path=path) from error
    purpose = f"{path} is pickled, which only PyTorch can read; use a safetensors file, or install PyTorch"
    with needed(purpose, "torch", raises=FileError):
        import torch
    try:
        archive = zipfile.is_zipfile(path)
        mapped = archive and _is_stored(path)
        names = _foreign_names(path) if archive else _names_before_1_6(path)
        inert = [name for name in names if _INERT.fullmatch(name)]
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals([(_Inert, name) for name in inert]),
        ):
            warnings.simplefilter("ignore")  # about the pickle's protocol and old storages, irrelevant here
            if Path(path).suffix.lower() not in PICKLES:  # PyTorch reads .safetensors in another way
                with open(path, "rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            return torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # for a damaged pickle, PyTorch may raise any exception
        code = re.search(r"GLOBAL (\w[\w.]*)", str(error))
        if code:
            raise FileError(
                f"{path} holds code or foreign objects ({code[1]}), which are never executed; where it comes from, "
                "save the tensors alone: torch.save(model.state_dict(), ...)",
                path=path,
            ) from error
        # PyTorch's message advises to read without `weights_only`, which would execute the file's code.
        reason = next(iter(str(error).splitlines()), "") or "no reason given"
        reason = "its pickle cannot be read" if "weights" in reason.lower() else f"{type(error).__name__}: {reason}"
        raise FileError(incomplete(path, "pickle", reason)) from error


def _is_stored(path: str | os.PathLike[str]) -> bool:
    """Returns whether the members are uncompressed, as PyTorch writes them; only those can be mapped."""
    with zipfile.ZipFile(path) as archive:
        return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def _foreign_names(path: str | os.PathLike[str]) -> list[str]:
    from torch.serialization import get_unsafe_globals_in_checkpoint

    return get_unsafe_globals_in_checkpoint(os.fspath(path))


def _names_before_1_6(path: str | os.PathLike[str]) -> set[str]:
    """Returns the classes and functions that a file of PyTorch < 1.6 names, without importing them."""
    names: set[str] = set()
    with open(path, "rb") as file, contextlib.suppress(Exception):  # damage is reported by the reader
        for _ in range(4):  # magic number, version, system, content
            names |= {str(arg).replace(" ", ".") for op, arg, _ in pickletools.genops(file) if op.name == "GLOBAL"}
    return names


def _tensors_in(path: str | os.PathLike[str], content: Any) -> "dict[str, torch.Tensor]":
    """Returns the named tensors of a checkpoint; the name of a single dictionary that holds them all is left out."""
    if not isinstance(content, Mapping):
        raise FileError(f"{path} holds a {type(content).__name__}; expected a dictionary of named tensors", path=path)
    if "state_dict" in content:
        content = {name: value for name, value in content.items() if name not in BOOKKEEPING}
    tensors = _flatten(path, content)
    while True:
        holders = [name for name, value in content.items() if _holds_tensors(path, value)]
        if len(holders) != 1 or holders[0] in ("encoder", "decoder") or not isinstance(content[holders[0]], Mapping):
            break
        content = content[holders[0]]
        tensors = _flatten(path, content)
    if not tensors:
        lines = [f"  {shorten([repr(name)])}: {_describe(value)}" for name, value in content.items()]
        raise FileError("\n".join([f"{path} holds no named tensors, only:", *shorten_lines(lines, _SHOWN), _REMEDY]))
    strangers = {name: tensor for name, tensor in tensors.items() if not _is_plain(tensor)}
    if strangers:
        lines = [f"  {shorten([repr(name)])}: {_describe(tensor)}" for name, tensor in strangers.items()]
        raise FileError(
            "\n".join([f"{path} holds tensors that are not arrays:", *shorten_lines(lines, _SHOWN), _REMEDY])
        )
    return tensors


def _flatten(path: str | os.PathLike[str], content: Mapping[Any, Any]) -> "dict[str, torch.Tensor]":
    """Returns all tensors in nested dictionaries, by their names joined with dots."""
    import torch

    tensors: dict[str, torch.Tensor] = {}
    left, seen = [("", content, 0)], 0
    while left:
        where, branch, depth = left.pop()
        seen += len(branch)
        if depth > _DEPTH or seen > _MOST:  # a dictionary that contains itself, or another one many times
            raise FileError(
                f"{path} holds dictionaries nested more than {_DEPTH} deep, or too many; {_REMEDY}", path=path
            )
        for key, value in branch.items():
            name = f"{where}{key}"
            if isinstance(value, Mapping):
                left.append((f"{name}.", value, depth + 1))
            elif isinstance(value, torch.Tensor):
                if not is_text(name):
                    raise FileError(
                        f"{path} holds a tensor with a name that is not valid text: {name!a}; {_REMEDY}", path=path
                    )
                if name in tensors:
                    raise FileError(f"{path} holds two tensors of the name {name!r}; {_REMEDY}", path=path)
                tensors[name] = value
    return tensors


def _holds_tensors(path: str | os.PathLike[str], value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor) or (isinstance(value, Mapping) and bool(_flatten(path, value)))


def _is_plain(tensor: "torch.Tensor") -> bool:
    """Returns whether numpy can hold a tensor."""
    import torch

    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and not tensor.is_nested
        and _bytes_stored(tensor) is None
    )


def _bytes_stored(value: Any) -> int | None:
    """Returns the stored bytes of a tensor that claims far more elements, and None for any other object."""
    import torch

    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_nested:
        return None
    stored = value.untyped_storage().nbytes()
    return stored if value.numel() * value.element_size() > _MOST_EXPANDED * max(stored, 1 << 10) else None


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dictionary of {len(value)}"
    if (stored := _bytes_stored(value)) is not None:
        return f"a tensor of {value.numel():,} elements, of which {stored:,} bytes are stored"
    return f"a {type(value).__name__}" + (f" ({layout})" if (layout := getattr(value, "layout", None)) else "")
