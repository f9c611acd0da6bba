"""The files of a latent data set, a folder: what stands in the shards, and what in the index.

    index.json                   what was encoded and how, the statistics, and the list of the shards; written last
    statistics.json              mean and deviation of every channel, as in the index
    latents-00000.safetensors    a shard
    skipped.jsonl                images that could not be read, where there are such
    plan.json                    what `flax-vae encode` goes by when it is started again
    images-00000.jsonl           name, height and width of each image of the plan; one such file more for each --append

A shard holds one tensor `n h w c` for each size of latent in it, and not one for each image: its header stays a few
hundred bytes long however many images there are, and a tensor is a batch as it is.  What is known of each entry stands
beside them as columns: `number` of the image in the source, `height` and `width` of the original in pixels, `flipped`,
the UTF-8 bytes of all names with the end of each, `name` and `name_end`, `source_sha256` of the image file, and `crc32`
of the latent.  Columns are mapped like the latents and
need no parsing, so that millions of entries cost a reader neither time nor memory; and as shard and entries are one
file, a rename makes both appear together.

The index holds its own digest, and the size and the digest of the header of each shard, which holds the digest of the
data: a shard that was exchanged, cut short or made by another run is found when the data set is opened.  Data sets of
format 1, which were written before, have only the digest of the data.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from flax_vae.convert.architecture import AutoEncoderParams
from flax_vae.convert.errors import FileError
from flax_vae.convert.files import new_file, read_object
from flax_vae.convert.latents.statistics import LatentStatistics

FORMAT = 2
INDEX, STATISTICS, SKIPPED, PLAN = "index.json", "statistics.json", "skipped.jsonl", "plan.json"

Store = Literal["mean", "moments", "sample"]
StoreDtype = Literal["float32", "bfloat16", "float16"]
_SELF = "sha256"  # the key of the index's own digest
_SHARD = re.compile(r"latents-\d{5,}\.safetensors")


@dataclass(frozen=True)
class Encoding:
    """How images became latents: whatever a number in a shard depends on, but for the images.

    Attributes:
      encoder_sha256: of the weights that encode, and only those: a decoder that was trained further for the same
        latents reads them too.
      architecture: of the autoencoder.
      store: `"mean"` of the posterior or a `"sample"` of it, scaled as `AutoEncoder.encode` returns them; or the
        `"moments"`, mean and logvar, raw.
      dtype: of the stored numbers.
      compute_dtype: of the computation.
      multiple: sides of the images were padded to multiples of it, in pixels.
      flip: whether each image is followed by its mirror image.
      seed: of the samples; None where none were drawn.
      time: condition of a model that takes one.
    """

    encoder_sha256: str
    architecture: AutoEncoderParams
    store: Store
    dtype: StoreDtype
    compute_dtype: str
    multiple: int
    flip: bool = False
    seed: int | None = None
    time: float | None = None

    def __post_init__(self):
        for name, kinds in (("store", get_args(Store)), ("dtype", get_args(StoreDtype))):
            if getattr(self, name) not in kinds:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(kinds)}")

    @property
    def parts(self) -> tuple[str, ...]:
        """What a shard holds of each entry: `latent`, or `mean` and `logvar`."""
        return ("mean", "logvar") if self.store == "moments" else ("latent",)

    @property
    def scaled(self) -> bool:
        """Whether the latents are scaled."""
        return self.store != "moments"

    @property
    def channels(self) -> int:
        """Of a stored latent."""
        return self.architecture.latent_channels if self.scaled else self.architecture.z_channels

    @property
    def factor(self) -> int:
        """Pixels of the padded image for each row, or column, of a stored latent."""
        return self.architecture.factor // (1 if self.scaled else self.architecture.patch)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values."""
        return asdict(self) | {"architecture": self.architecture.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Encoding":
        """The inverse of `to_dict`.

        Raises:
          TypeError, ValueError: if the fields are not those of an encoding.
        """
        return cls(**{**values, "architecture": AutoEncoderParams.from_dict(values["architecture"])})


class Run(NamedTuple):
    """Consecutive entries of a shard whose latents have one size: `height` x `width`, `count` of them."""

    height: int
    width: int
    count: int


@dataclass(frozen=True)
class ShardRecord:
    """What the index says of a shard.

    Attributes:
      file: its name.
      entries: latents in it.
      runs: their sizes, in order.
      data_sha256: of everything behind the file's header, as the header itself has it.
      size: Length of the file in bytes; None in format 1.
      header_sha256: SHA-256 of the file's header; None in format 1.
    """

    file: str
    entries: int
    runs: tuple[Run, ...]
    data_sha256: str
    size: int | None = None
    header_sha256: str | None = None


@dataclass(frozen=True)
class LatentIndex:
    """What `index.json` says.

    Attributes:
      encoding: how the latents were made.
      entries: latents in all shards.
      images: that were encoded; twice as many entries with mirror images.
      skipped: images that could not be.
      shards: in order.
      statistics: Mean and deviation of each channel over all entries.
    """

    encoding: Encoding
    entries: int
    images: int
    skipped: int
    shards: tuple[ShardRecord, ...]
    statistics: LatentStatistics


def images_file(part: int) -> str:
    """Returns the name of the list of images of a part of the plan."""
    return f"images-{part:05d}.jsonl"


def shard_file(number: int) -> str:
    """The name of a shard."""
    return f"latents-{number:05d}.safetensors"


def dump_index(index: LatentIndex) -> str:
    """Returns the text of `index.json`, a line for each shard."""
    encoding = index.encoding
    told = {"scaled": encoding.scaled, "factor": encoding.factor, "channels": encoding.channels}
    head = {"format": FORMAT, "encoding": encoding.to_dict()} | told
    head |= {"statistics": index.statistics.to_dict()}
    head |= {"entries": index.entries, "images": index.images, "skipped": index.skipped}
    records = [asdict(shard) for shard in index.shards]
    head[_SELF] = _own_sha256(head | {"shards": records})
    shards = ",\n".join(f"    {json.dumps(record)}" for record in records)
    text = json.dumps(head, indent=2, allow_nan=False).removesuffix("\n}")
    return f'{text},\n  "shards": [\n{shards}\n  ]\n}}\n'


def write_index(folder: Path, index: LatentIndex) -> None:
    """Writes `index.json`."""
    with new_file(folder / INDEX, force=True) as file:
        file.write_text(dump_index(index), encoding="utf-8")


def read_latent_index(folder: str | os.PathLike[str]) -> LatentIndex:
    """Reads `index.json`; the shards are not looked at.

    Raises:
      FileNotFoundError: if the folder is no latent data set, or one that is not complete.
      FileError: if the file is damaged, of a later format, or names files that are no shards beside it.
    """
    path = Path(folder) / INDEX
    if not path.is_file():
        if path.with_name(PLAN).is_file():
            raise FileNotFoundError(f"{folder} is not complete; start the same flax-vae encode again, which goes on")
        raise FileNotFoundError(f"{folder} holds no {INDEX}; give a folder that flax-vae encode has written")
    try:
        values = read_object(path, 1 << 28)
        if values["format"] not in (1, FORMAT):
            raise ValueError(f"it is of format {values['format']!r}, and this program reads 1 and {FORMAT}")
        shards = tuple(_shard_record(shard) for shard in values["shards"])
        encoding = Encoding.from_dict(values["encoding"])
        entries, images, skipped = (int(values[name]) for name in ("entries", "images", "skipped"))
        if sum(shard.entries for shard in shards) != entries:
            raise ValueError(f"its shards do not hold {entries} entries together")
        statistics = None
        if values["format"] != 1:
            statistics = LatentStatistics.from_dict(values["statistics"])
        if (statistics is not None or _SELF in values) and values.pop(_SELF) != _own_sha256(values):
            raise ValueError("its content is not what was written: its SHA-256 differs")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path} is not the index of latents ({error}); get it again") from error
    statistics = statistics or _read_statistics(path.with_name(STATISTICS))
    return LatentIndex(encoding, entries, images, skipped, shards, statistics)


def _own_sha256(values: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of what an index says, however it is laid out."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _read_statistics(path: Path) -> LatentStatistics:
    """Reads the statistics of a data set of format 1."""
    try:
        return LatentStatistics.from_dict(read_object(path, 1 << 28))
    except ValueError as error:
        raise FileError(f"{path} does not hold the statistics of latents: {error}") from error


def _shard_record(values: Mapping[str, Any]) -> ShardRecord:
    record = ShardRecord(**{**values, "runs": tuple(Run(*map(int, run)) for run in values["runs"])})
    if not _SHARD.fullmatch(record.file):  # it comes from whoever made the data set: nothing else is opened
        raise ValueError(f"it names the shard {record.file!r}; a shard is called {shard_file(0)} or alike")
    if sum(run.count for run in record.runs) != record.entries or any(min(run) < 1 for run in record.runs):
        raise ValueError(f"the sizes of {record.file} are not those of {record.entries} entries")
    return record
