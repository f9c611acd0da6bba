"""Reading the latents that `flax-vae encode` wrote: numpy, and neither framework."""

import operator
import os
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, SupportsIndex, get_args

import numpy as np

from flax_vae.convert.errors import FileError
from flax_vae.convert.formats import read_metadata, read_tensors
from flax_vae.convert.latents.index import LatentIndex, ShardRecord, read_latent_index
from flax_vae.convert.latents.shard import checksum, columns_sha256, name_of, require_listed

AxisOrder = Literal["hwc", "chw"]

# Shards that are mapped at a time.  Each takes one of the files that a process may have open, of which 1,024 are usual.
_MAPPED = 256
_THREADS = 16  # look at the headers of shards, which is mostly waiting


class LatentDataset:
    """The latents of a folder, by their position from 0: random access, from any number of threads or processes.

    An entry is a dictionary: `latent`, or `mean` and `logvar` where moments were stored, float arrays `h w c`; `name`
    of the image in the source folder; `height` and `width` of the original in pixels, of which the latent of a padded
    image shows the upper left; `flipped`, whether it is the mirror image; `number` of the image in the sorted list of
    the source.  A latent or a sample is scaled, as `AutoEncoder.encode` returns it; mean and logvar are raw.

    Shards are mapped into memory when an entry of theirs is asked for.  Entries lie sorted by the size of their latent.

    Attributes:
      folder: of the data set.
      index: what is known of it; `index.encoding` says how the latents were made.
      statistics: mean and deviation of each channel over all entries.
      sizes: (height, width) of a latent to the positions of the entries of that size.

    Example, numpy alone:
      >>> latents = LatentDataset("latents")                                                    # doctest: +SKIP
      >>> for positions in latents.batches(32, seed=0):                                         # doctest: +SKIP
      ...     z = np.stack([latents[i]["latent"] for i in positions])

    grain, for JAX; the data set is a source as it is:
      >>> import grain                                                                          # doctest: +SKIP
      >>> source = grain.MapDataset.source(LatentDataset("latents"))                            # doctest: +SKIP
      >>> batches = source.shuffle(seed=0).batch(32).to_iter_dataset()                          # doctest: +SKIP

    torch; `batches` keeps the sizes apart, and "chw" is how torch lays out images:
      >>> from torch.utils.data import DataLoader                                               # doctest: +SKIP
      >>> latents = LatentDataset("latents", layout="chw")                                      # doctest: +SKIP
      >>> loader = DataLoader(latents, batch_sampler=latents.batches(32, seed=0), num_workers=4)  # doctest: +SKIP
      >>> for batch in loader:                                                                  # doctest: +SKIP
      ...     z = batch["latent"]
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        layout: AxisOrder = "hwc",
        dtype: str | None = "float32",
        verify: bool | None = None,
    ):
        """Reads the index, and compares the header of each shard with it.

        Args:
          folder: what `flax-vae encode` wrote.
          layout: of an entry's arrays: `"hwc"`, Flax's, or `"chw"`, torch's.
          dtype: that the arrays are converted to, copies that may be written to; None gives read-only views of the
            file, in the dtype that it holds.
          verify: Whether data are compared with what was written.  None compares each latent with its CRC-32 when it
            is read, at 1 GB/s and more; True also compares each shard with its SHA-256 when it is first mapped, which
            reads all of it; False compares nothing but the headers.  Data sets of format 1 have no CRC-32.

        Raises:
          FileNotFoundError: if the folder is no latent data set, or one that is not complete.
          FileError: if its index is damaged, or a shard is missing, cut short, or not the one of the index.
          ValueError: if there is no such layout.
        """
        if layout not in get_args(AxisOrder):
            raise ValueError(f"layout={layout!r} must be 'hwc' or 'chw'")
        self.folder = Path(folder)
        self.index: LatentIndex = read_latent_index(folder)
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
        """Returns one entry; see the class.

        Raises:
          IndexError: if there is no such position.
          FileError: if the shard is damaged.
        """
        wanted = operator.index(position)
        if not -len(self) <= wanted < len(self):
            raise IndexError(f"position {wanted} is not one of the {len(self)} latents in {self.folder}")
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
        """The positions of all entries, in batches of equally large latents.

        Args:
          batch_size: entries of a batch; the last of each size may be smaller.
          seed: of the order of entries and batches, a pure function of (seed, epoch); None keeps that of the files.
          epoch: see `seed`.
          drop_last: leave the smaller batches out.

        Raises:
          ValueError: if `batch_size` is less than 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        rng = None if seed is None else np.random.default_rng((seed, epoch))
        batches = []
        for positions in self.sizes.values():
            order = (positions if rng is None else rng.permutation(positions)).tolist()
            batches += [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
        if drop_last:
            batches = [batch for batch in batches if len(batch) == batch_size]
        return batches if rng is None else [batches[index] for index in rng.permutation(len(batches))]

    def __getstate__(self) -> dict[str, Any]:
        """Without what is mapped: another process maps it anew."""
        return {name: value for name, value in vars(self).items() if name not in ("_mapped", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _mapped=OrderedDict(), _lock=threading.Lock())

    def __repr__(self) -> str:
        return f"LatentDataset({str(self.folder)!r}): {len(self)} of {self.index.encoding.store}"

    def _laid_out(self, array: np.ndarray) -> np.ndarray:
        array = array if self._layout == "hwc" else np.moveaxis(array, -1, 0)
        return array if self._dtype is None else np.array(array, self._dtype, order="C")

    def _shard(self, number: int) -> "_Shard":
        with self._lock:
            shard = self._mapped.get(number)
            if shard is None:
                while len(self._mapped) >= _MAPPED:  # an array that is in use keeps its map
                    self._mapped.popitem(last=False)
                record = self.index.shards[number]
                self._mapped[number] = shard = _Shard(self.folder, record, self.index.encoding.parts, self._verify)
            self._mapped.move_to_end(number)
            return shard


class _Shard:
    """One mapped file."""

    def __init__(self, folder: Path, record: ShardRecord, parts: tuple[str, ...], verify: bool | None):
        self.record = record
        self._path = path = folder / record.file
        require_listed(folder, record)  # again: it may have been exchanged since
        self._tensors = tensors = read_tensors(path, verify=verify is True)
        expected = {name: record.entries for name in ("number", "height", "width", "flipped", "name_end")}
        expected |= {f"{part}/{run.height}x{run.width}": run.count for run in record.runs for part in parts}
        if "name" not in tensors or any(len(tensors.get(name, ())) != count for name, count in expected.items()):
            raise FileError(f"{path} is not the shard that the index describes; get both again")
        self._checksums = None
        if verify is not False and record.header_sha256 is not None:
            if read_metadata(path).get("columns_sha256") != columns_sha256(tensors):
                raise FileError(f"{path} is damaged: the names or numbers of its images changed; get it again")
            self._checksums = tensors["crc32"]
        self._parts = parts
        self._ends = np.cumsum([run.count for run in record.runs])

    def entry(self, row: int) -> dict[str, Any]:
        """Views of the file, and what is known of the entry."""
        run = int(np.searchsorted(self._ends, row, side="right"))
        height, width, count = self.record.runs[run]
        inside = row - int(self._ends[run]) + count
        values: dict[str, Any] = {part: self._tensors[f"{part}/{height}x{width}"][inside] for part in self._parts}
        name = name_of(self._tensors, row)
        if self._checksums is not None and checksum([*values.values()]) != self._checksums[row]:
            raise FileError(f"{self._path} is damaged: the latent of {name!r} is not what was written; get it again")
        values |= {"name": name}
        values |= {column: int(self._tensors[column][row]) for column in ("height", "width", "number")}
        return values | {"flipped": bool(self._tensors["flipped"][row])}


def _sizes(shards: tuple[ShardRecord, ...]) -> dict[tuple[int, int], np.ndarray]:
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    first = 0
    for run in (run for shard in shards for run in shard.runs):
        found.setdefault((run.height, run.width), []).append(np.arange(first, first + run.count))
        first += run.count
    return {size: np.concatenate(positions) for size, positions in found.items()}
