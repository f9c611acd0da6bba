"""Reads the latents written by `flax-vae encode`, with NumPy alone."""

import operator
import os
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, SupportsIndex, get_args

import numpy as np

from flax_vae.convert.errors import ArgumentError, FileError
from flax_vae.convert.files import Place, as_path, is_address
from flax_vae.convert.formats import read_metadata, read_tensors
from flax_vae.convert.latents.bucket import local_shard, require_sizes
from flax_vae.convert.latents.index import LatentIndex, ShardRecord, read_latent_index
from flax_vae.convert.latents.shard import caption_of, checksum, columns_sha256, label_of, name_of, require_listed

AxisOrder = Literal["hwc", "chw"]

# Maximum number of mapped shards.  Each uses one open file, of which a process usually has 1,024.
_MAPPED = 256
# How shards of other formats are read.
_READERS = {
    "arrayrecord": "read them with grain and flax_vae.convert.latents.read_record",
    "npz": "read them with numpy.load",
    "pt": "read them with torch.load",
}
_THREADS = 16  # threads that check the headers of shards, which is mostly waiting


class LatentDataset:
    """The latents of a folder, by position from 0: random access from any number of threads or processes.

    An entry is a dictionary: `latent`, or `mean` and `logvar` or `std` if these were stored, float arrays `h w c`;
    `name`, path of the image in the source folder; `height` and `width` of the encoded image in pixels, which fills the
    upper left of a padded one; `flipped`, whether the entry is the mirror image; `number`, position of the image in the
    sorted list of the source; and if the source has them `label`, -1 for none, and `caption`.  A latent or a sample is
    scaled, as returned by `AutoEncoder.encode`; mean, logvar and std are raw.

    Shards are mapped into memory on first use; those of a bucket are copied first, to the folder
    `flax_vae.convert.files.cache_folder()`, which processes share.  Entries are sorted by the size of their latent.

    Attributes:
      folder: Folder of the data set; an `epath.Path` in a bucket.
      index: Content of `index.json`; `index.encoding` describes how the latents were made.
      statistics: Mean and standard deviation of each channel over all entries.
      sizes: Positions of the entries by (height, width) of their latent.

    Examples:
      With NumPy:

      >>> latents = LatentDataset("latents")                                                    # doctest: +SKIP
      >>> for positions in latents.batches(32, seed=0):                                         # doctest: +SKIP
      ...     z = np.stack([latents[i]["latent"] for i in positions])

      With grain, for JAX; the data set is a grain source, and its latents must be of one size:

      >>> import grain                                                                          # doctest: +SKIP
      >>> source = grain.MapDataset.source(LatentDataset("latents"))                            # doctest: +SKIP
      >>> batches = source.shuffle(seed=0).batch(32).to_iter_dataset()                          # doctest: +SKIP

      With PyTorch; a batch holds latents of one size, and "chw" is PyTorch's axis order:

      >>> from torch.utils.data import DataLoader                                               # doctest: +SKIP
      >>> latents = LatentDataset("latents", layout="chw")                                      # doctest: +SKIP
      >>> loader = DataLoader(latents, batch_sampler=latents.batches(32, seed=0), num_workers=4)  # doctest: +SKIP
      >>> for batch in loader:                                                                  # doctest: +SKIP
      ...     z = batch["latent"]
    """

    def __init__(
        self,
        folder: Place,
        *,
        layout: AxisOrder = "hwc",
        dtype: str | None = "float32",
        verify: bool | None = None,
    ):
        """Reads the index, and compares the header of each shard with it, or its length if it is in a bucket.

        Args:
          folder: Folder written by `flax-vae encode`, or its address in a bucket, `gs://bucket/latents` for example.
          layout: Axis order of an entry's arrays: `"hwc"` as in Flax, or `"chw"` as in PyTorch.
          dtype: Dtype of the returned arrays, which are writable copies; None returns read-only views of the file, in
            its dtype.
          verify: Whether to check the data.  None compares each latent with its CRC-32 when it is read, at 1 GB/s or
            more; True also compares each shard with its SHA-256 when it is first mapped, which reads the whole shard;
            False checks only the headers.  Data sets of format 1 have no CRC-32.

        Raises:
          FileNotFoundError: If the folder is not a latent data set, or not a complete one.
          FileError: If its index is damaged, or a shard is missing, truncated, or does not match the index.
          AddressError: If the bucket cannot be reached.
          ValueError: If the layout is unknown.
        """
        if layout not in get_args(AxisOrder):
            raise ArgumentError(f"layout={layout!r} must be 'hwc' or 'chw'", field="layout", value=layout)
        self.folder = as_path(folder)
        self.index: LatentIndex = read_latent_index(folder)
        if self.index.storage != "safetensors":
            raise FileError(
                f"the latents in {folder} are stored as {self.index.storage}; {_READERS[self.index.storage]}, or "
                "encode the images with --format safetensors",
                path=folder,
            )
        if is_address(folder):
            require_sizes(folder, self.index.shards)
        else:
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(lambda shard: require_listed(self.folder, shard), self.index.shards))
        self.statistics = self.index.statistics
        self.sizes = _sizes(self.index.shards)
        self._layout, self._dtype, self._verify = layout, None if dtype is None else np.dtype(dtype), verify
        self._ends = np.cumsum([shard.entries for shard in self.index.shards], dtype=np.int64)
        self._mapped: OrderedDict[int, _Shard] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.index.entries

    def __getitem__(self, position: SupportsIndex) -> dict[str, Any]:
        """Returns one entry; see the class for its keys.

        Raises:
          IndexError: If the position is out of range.
          FileError: If the shard is damaged.
        """
        wanted = operator.index(position)
        if not -len(self) <= wanted < len(self):
            raise IndexError(f"position {wanted} is out of range; {self.folder} holds {len(self)} latents")
        wanted %= len(self)
        number = int(np.searchsorted(self._ends, wanted, side="right"))
        shard = self._shard(number)
        entry = shard.entry(wanted - int(self._ends[number]) + shard.record.entries)
        return {
            name: self._laid_out(value) if isinstance(value, np.ndarray) else value for name, value in entry.items()
        }

    def batches(
        self, batch_size: int, *, seed: int | None = None, epoch: int = 0, drop_last: bool = False
    ) -> list[list[int]]:
        """Returns the positions of all entries in batches of latents of one size.

        Args:
          batch_size: Entries per batch; the last of each size may be smaller.
          seed: Seed of the order of entries and batches, a pure function of (seed, epoch); None keeps the stored order.
          epoch: Epoch number; see `seed`.
          drop_last: Whether to leave out the smaller batches.

        Raises:
          ValueError: If `batch_size` is less than 1.
        """
        if batch_size < 1:
            raise ArgumentError(f"batch_size={batch_size} must be at least 1", field="batch_size", value=batch_size)
        rng = None if seed is None else np.random.default_rng((seed, epoch))
        batches = []
        for positions in self.sizes.values():
            order = (positions if rng is None else rng.permutation(positions)).tolist()
            batches += [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
        if drop_last:
            batches = [batch for batch in batches if len(batch) == batch_size]
        return batches if rng is None else [batches[index] for index in rng.permutation(len(batches))]

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state without mapped shards; another process maps them again."""
        return {name: value for name, value in vars(self).items() if name not in ("_mapped", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _mapped=OrderedDict(), _lock=threading.Lock())

    def __repr__(self) -> str:
        return f"LatentDataset({os.fspath(self.folder)!r}): {len(self)} of {self.index.encoding.store}"

    def _laid_out(self, array: np.ndarray) -> np.ndarray:
        array = array if self._layout == "hwc" else np.moveaxis(array, -1, 0)
        return array if self._dtype is None else np.array(array, self._dtype, order="C")

    def _shard(self, number: int) -> "_Shard":
        with self._lock:
            shard = self._mapped.get(number)
            if shard is None:
                while len(self._mapped) >= _MAPPED:  # arrays in use keep their map alive
                    self._mapped.popitem(last=False)
                record = self.index.shards[number]
                folder = local_shard(self.folder, record) if is_address(self.folder) else self.folder
                self._mapped[number] = shard = _Shard(folder, record, self.index, self._verify)
            self._mapped.move_to_end(number)
            return shard


class _Shard:
    """One mapped shard."""

    def __init__(self, folder: Path, record: ShardRecord, index: LatentIndex, verify: bool | None):
        self.record = record
        self._path = path = folder / record.file
        parts, self._columns = index.encoding.parts, index.columns
        require_listed(folder, record)  # again: the file may have been replaced since
        self._tensors = tensors = read_tensors(path, verify=verify is True)
        expected = {name: record.entries for name in ("number", "height", "width", "flipped", "name_end")}
        expected |= {f"{part}/{run.height}x{run.width}": run.count for run in record.runs for part in parts}
        if "name" not in tensors or any(len(tensors.get(name, ())) != count for name, count in expected.items()):
            raise FileError(f"{path} is not the shard that the index describes; get both again", path=path)
        self._checksums = None
        if verify is not False and record.header_sha256 is not None:
            if read_metadata(path).get("columns_sha256") != columns_sha256(tensors):
                raise FileError(
                    f"{path} is damaged: the names or numbers of its images changed; get it again", path=path
                )
            self._checksums = tensors["crc32"]
        self._parts = parts
        self._ends = np.cumsum([run.count for run in record.runs])

    def entry(self, row: int) -> dict[str, Any]:
        """Returns views of an entry's arrays, and its columns."""
        run = int(np.searchsorted(self._ends, row, side="right"))
        height, width, count = self.record.runs[run]
        inside = row - int(self._ends[run]) + count
        values: dict[str, Any] = {part: self._tensors[f"{part}/{height}x{width}"][inside] for part in self._parts}
        name = name_of(self._tensors, row)
        if self._checksums is not None and checksum([*values.values()]) != self._checksums[row]:
            raise FileError(
                f"{self._path} is damaged: the latent of {name!r} is not what was written; get it again",
                path=self._path,
            )
        values |= {"name": name}
        values |= {column: int(self._tensors[column][row]) for column in ("height", "width", "number")}
        values |= {"flipped": bool(self._tensors["flipped"][row])}
        return values | {column: _OPTIONAL[column](self._tensors, row) for column in self._columns}


_OPTIONAL = {"label": label_of, "caption": caption_of}


def _sizes(shards: tuple[ShardRecord, ...]) -> dict[tuple[int, int], np.ndarray]:
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    first = 0
    for run in (run for shard in shards for run in shard.runs):
        found.setdefault((run.height, run.width), []).append(np.arange(first, first + run.count))
        first += run.count
    return {size: np.concatenate(positions) for size, positions in found.items()}
