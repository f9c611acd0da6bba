"""One file that `torch.load` reads for each latent, as the training code of MeanFlow and iMF expects.

PyTorch's format is a zip file of a pickle and the bytes of each tensor.  The pickle of these files differs in numbers
alone, so it is written here, without PyTorch.
"""

import hashlib
import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from flax_vae.convert.files import atomic_file
from flax_vae.convert.latents.index import Storage
from flax_vae.convert.latents.sealed import SealedShards, entry_rows
from flax_vae.convert.latents.shard import NO_LABEL, LatentEntry, ShardContent

_THREADS = 16  # they wait until their file is on the disk
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time of a zip file, so that equal tensors give equal bytes
_CLASSES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage"}


class TorchFiles(SealedShards):
    """Files `00000000.pt`, one for each entry: a dictionary of the tensors `image` and `label`.

    `image` has the shape (c, h, w); mean and standard deviation (or log variance) follow each other along c, as in
    MeanFlow's and iMF's files, which `--store mean-std` gives.  `label` is an int64 without axes, -1 for none.  The
    number of a file is that of the image in the source; with mirror images, it is twice that, plus 1 for the mirror
    image.

    Source: Gsunshine/meanflow and Lyy-iiis/imeanflow, `utils/data_util.py` and `utils/vae_util.py`.
    """

    storage: Storage = "pt"
    data = r"\d{8,}\.pt"

    def write_data(self, folder: Path, number: int, content: ShardContent) -> dict[str, str]:
        """Writes one file for each entry."""
        mirrored = any(entry.flipped for entry in content.entries)

        def write(row: tuple[LatentEntry, Mapping[str, np.ndarray]]) -> tuple[str, str]:
            entry, parts = row
            image = np.moveaxis(np.concatenate([*parts.values()], axis=-1), -1, 0)
            label = np.array(NO_LABEL if entry.label is None else entry.label, np.int64)
            data = torch_bytes({"image": image, "label": label})
            name = f"{(2 * entry.number + entry.flipped) if mirrored else entry.number:08d}.pt"
            with atomic_file(folder / name, force=True) as file:
                file.write_bytes(data)
            return name, hashlib.sha256(data).hexdigest()

        with ThreadPoolExecutor(_THREADS) as pool:
            return dict(pool.map(write, entry_rows(content)))


def torch_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns the file that `torch.save` writes of a dictionary of CPU tensors.

    Args:
      arrays: Arrays of float32, float16, bfloat16 or int64, by name.
    """
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:

        def add(name: str, data: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(f"latent/{name}", _EPOCH), data)

        add("data.pkl", _pickle(arrays))
        add("byteorder", b"little")
        for index, array in enumerate(arrays.values()):
            add(f"data/{index}", np.asarray(array, array.dtype.newbyteorder("<"), order="C").tobytes())
        add("version", b"3\n")
    return file.getvalue()


def _pickle(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns a pickle of protocol 2 that calls `torch._utils._rebuild_tensor_v2` for each tensor."""
    items = b"".join(_text(name) + _tensor(index, array) for index, (name, array) in enumerate(arrays.items()))
    return pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS + pickle.STOP


def _tensor(index: int, array: np.ndarray) -> bytes:
    storage = _text("storage") + _global("torch", _CLASSES[array.dtype.name]) + _text(str(index)) + _text("cpu")
    strides = [int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim)]
    hooks = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = [
        _tuple(storage + _int(array.size)) + pickle.BINPERSID,
        _int(0),  # offset in the storage
        _tuple(b"".join(map(_int, array.shape))),
        _tuple(b"".join(map(_int, strides))),
        pickle.NEWFALSE,  # requires no gradient
        hooks,
    ]
    return _global("torch._utils", "_rebuild_tensor_v2") + _tuple(b"".join(arguments)) + pickle.REDUCE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(text.encode())) + text.encode()


def _int(value: int) -> bytes:
    return pickle.BININT + struct.pack("<i", value)


def _tuple(items: bytes) -> bytes:
    return pickle.MARK + items + pickle.TUPLE
