"""Checkpoints that PyTorch pickled: `.pt`, `.pth`, `.ckpt`, `.bin`.

A pickle is a program.  PyTorch's `weights_only` reader runs none of it: it knows tensors, containers and numbers, and
refuses everything else.  PyTorch itself is loaded when such a file is read, and for nothing else.
"""

import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from convert.errors import FileError

if TYPE_CHECKING:
    import torch

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")

# What PyTorch Lightning writes beside `state_dict`; none of it is a weight of the model.
BOOKKEEPING = {
    *("epoch", "global_step", "pytorch-lightning_version", "loops", "callbacks", "optimizer_states", "lr_schedulers"),
    *("hparams_name", "hyper_parameters", "hparams_type", "datamodule_hparams_name", "datamodule_hyper_parameters"),
    *("native_amp_scaling_state", "amp_scaling_state", "MixedPrecision", "checkpoint_callback_best_model_path"),
    *("checkpoint_callback_best_model_score", "early_stop_callback_wait", "early_stop_callback_patience"),
}

# What that bookkeeping is made of in the published Stable Diffusion and latent-diffusion checkpoints.  In the place of
# each, the reader gets `_Inert`, so not even these are imported or called.
_INERT = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|omegaconf)\..*|numpy\.(_?core\.multiarray\.scalar|dtype)"
    r"|numpy\.dtypes\.\w+|_codecs\.encode|typing\.\w+|pathlib\.\w+|argparse\.Namespace"
)

# Bit patterns that numpy has no name for, as integers of the same width and as ml_dtypes.
_VIEWS = {
    "bfloat16": ("int16", ml_dtypes.bfloat16),
    "float8_e4m3fn": ("uint8", ml_dtypes.float8_e4m3fn),
    "float8_e5m2": ("uint8", ml_dtypes.float8_e5m2),
    "float8_e4m3fnuz": ("uint8", ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2fnuz": ("uint8", ml_dtypes.float8_e5m2fnuz),
}


def read_pickle(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns name to array, sorted by name, every bit as it was stored.

    The arrays are read-only views of the file where its format allows it (all that PyTorch >= 1.6 writes).  A file of
    PyTorch Lightning is unwrapped: its `state_dict` is returned, its bookkeeping left out.

    Raises:
      FileNotFoundError: if there is no such file.
      FileError: if PyTorch is not installed, if the file is damaged, holds code, or holds anything else than named
        tensors.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist")
    if Path(path).is_dir():
        raise FileError(f"{path} is a folder; give the name of a checkpoint")
    arrays = {}
    for name, tensor in sorted(_tensors_in(path, _load(path)).items()):
        try:
            arrays[name] = to_array(tensor)
        except TypeError as error:
            raise FileError(
                f"{path}: tensor {name!r} has dtype {tensor.dtype}, which numpy cannot hold; store it as another one"
            ) from error
        arrays[name].flags.writeable = False
    return arrays


def to_array(tensor: "torch.Tensor") -> np.ndarray:
    """Returns a tensor as an array, bit for bit; on the CPU as a view."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    name = str(tensor.dtype).removeprefix("torch.")
    if name in _VIEWS:
        import torch

        integers, dtype = _VIEWS[name]
        return tensor.view(getattr(torch, integers)).numpy().view(dtype)
    return tensor.numpy()


class _Inert:
    """Stands for an object that nobody needs; whatever it is called with, it does nothing."""

    def __init__(self, *args: object):
        pass

    def __setstate__(self, state: object):
        pass


def _load(path: str | os.PathLike[str]) -> Any:
    try:
        import torch
    except ImportError as error:
        raise FileError(
            f"{path} is pickled, which only PyTorch can read: pip install 'flax-vae[torch]', or give a safetensors file"
        ) from error
    try:
        archive = zipfile.is_zipfile(path)
        mapped = archive and _is_stored(path)
        inert = [name for name in _foreign_names(path) if _INERT.fullmatch(name)] if archive else []
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals([(_Inert, name) for name in inert]),
        ):
            warnings.simplefilter("ignore")  # about the pickle's protocol and old storages: of no use to the reader
            return torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle makes PyTorch raise nearly anything
        code = re.search(r"GLOBAL (\w[\w.]*)", str(error))
        if code:
            raise FileError(
                f"{path} holds code or foreign objects ({code[1]}), and none of that is ever run; where it comes from, "
                "save the tensors alone: torch.save(model.state_dict(), ...)"
            ) from error
        reason = next(iter(str(error).splitlines()), "") or "no reason given"
        raise FileError(
            f"{path} is not a complete PyTorch checkpoint ({type(error).__name__}: {reason}); it was cut short or is "
            "of another format: copy or write it again"
        ) from error


def _is_stored(path: str | os.PathLike[str]) -> bool:
    """Whether the members are uncompressed; PyTorch's own always are, and only those can be mapped."""
    with zipfile.ZipFile(path) as archive:
        return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def _foreign_names(path: str | os.PathLike[str]) -> list[str]:
    from torch.serialization import get_unsafe_globals_in_checkpoint

    return get_unsafe_globals_in_checkpoint(os.fspath(path))


def _tensors_in(path: str | os.PathLike[str], content: Any) -> "dict[str, torch.Tensor]":
    """Returns the named tensors of a checkpoint, inside Lightning's `state_dict` where it has one."""
    where = ""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        strangers = [name for name in content if name != "state_dict" and name not in BOOKKEEPING]
        _refuse(path, "beside 'state_dict'", {name: content[name] for name in strangers})
        content, where = content["state_dict"], "in 'state_dict'"
    if not isinstance(content, Mapping):
        raise FileError(f"{path} holds a {type(content).__name__}; a dictionary of named tensors was expected")
    _refuse(path, where, {name: value for name, value in content.items() if not _is_plain(name, value)})
    return dict(content)


def _is_plain(name: object, value: object) -> bool:
    """Whether it is a tensor that an array can hold, by name."""
    import torch

    return (
        isinstance(name, str)
        and isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_nested
    )


def _refuse(path: str | os.PathLike[str], where: str, strangers: Mapping[Any, Any]) -> None:
    if not strangers:
        return
    lines = [f"  {name!r}: {_describe(value)}" for name, value in strangers.items()]
    raise FileError(
        "\n".join(
            [
                f"{path} holds more than named tensors{' ' + where if where else ''}:",
                *lines[:20],
                *([f"  and {len(lines) - 20} more"] if len(lines) > 20 else []),
                "save the dictionary that is meant by itself: torch.save(model.state_dict(), ...)",
            ]
        )
    )


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a dictionary of {len(value)}"
    return f"a {type(value).__name__}" + (f" ({layout})" if (layout := getattr(value, "layout", None)) else "")
