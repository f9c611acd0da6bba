"""Files of a latent data set, which is a folder: the layout of its shards and the content of its index.

    index.json                   encoding, statistics and the list of shards; written last
    statistics.json              mean and deviation of every channel, as in the index
    latents-00000.safetensors    a shard
    skipped.jsonl                images that could not be read, if any
    plan.json                    plan by which `flax-vae encode` resumes
    images-00000.jsonl           name, height and width of each image of the plan, and its label and caption if it has
                                 one; one more such file per --append

Shards of another format (`--format`, see `flax_vae.convert.latents.formats`) have a file `latents-00000.json` each,
the seal, which the index lists instead.

A shard holds one tensor `n h w c` per size of latent, not one per image: its header stays a few hundred bytes long for
any number of images, and a tensor is a batch.  The properties of the entries are stored as columns: `number` of the
image in the source, `height` and `width` of the encoded image in pixels, `flipped`, the UTF-8 bytes of all names and
the end of each, `name` and `name_end`, `source_sha256` of the image file, and `crc32` of the latent; if images have
labels or captions, also `label`, and `caption` and `caption_end`.  Columns are memory-mapped like the latents and need
no parsing, so millions of entries cost a reader neither time nor memory.  A shard and its entries are one file, so a
single rename publishes both.

The index holds its own digest, and for each shard its size and the digest of its header, which in turn holds the digest
of the data.  A shard that was replaced, truncated or made by another run is therefore detected when the data set is
opened.  Data sets of the earlier format 1 have only the digest of the data.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

from flax_vae.convert.architecture import Architecture, architecture_from_dict
from flax_vae.convert.errors import FileError
from flax_vae.convert.files import Place, address_below, address_of, exists_at, read_object
from flax_vae.convert.latents.statistics import LatentStatistics

FORMAT = 2
INDEX, STATISTICS, SKIPPED, PLAN = "index.json", "statistics.json", "skipped.jsonl", "plan.json"

Store = Literal["mean", "moments", "mean-std", "sample"]
Storage = Literal["safetensors", "arrayrecord", "npz", "pt"]
ImageCrop = Literal["center", "none"]
StoreDtype = Literal["float32", "bfloat16", "float16"]
_SELF = "sha256"  # key of the index's own digest
_SHARD = re.compile(r"latents-\d{5,}\.(safetensors|json)")


@dataclass(frozen=True)
class Encoding:
    """Settings of an encoding: everything that the stored values depend on, except the images.

    Attributes:
      encoder_sha256: SHA-256 of the encoder's weights alone, so that a decoder trained further for these latents
        matches too.
      architecture: Architecture of the autoencoder.
      store: Stored quantity: `"mean"` of the posterior or a `"sample"` of it, scaled as returned by
        `AutoEncoder.encode`; `"moments"`, the raw mean and logvar; or `"mean-std"`, the raw mean and standard
        deviation.  Tiny autoencoders have only the first.
      dtype: Dtype of the stored values.
      compute_dtype: Computation dtype.
      multiple: Number of pixels that the sides of the images were padded to a multiple of.
      flip: Whether each image is followed by its mirror image.
      resize: Length in pixels that the shorter side of each image was resized to first; None if images kept their size.
      crop: Whether the square in the `"center"` of a resized image was encoded, or all of it (`"none"`).
      seed: Seed of the samples; None without sampling.
      time: Time condition, for models that take one.
    """

    encoder_sha256: str
    architecture: Architecture
    store: Store
    dtype: StoreDtype
    compute_dtype: str
    multiple: int
    flip: bool = False
    seed: int | None = None
    time: float | None = None
    resize: int | None = None
    crop: ImageCrop = "none"

    def __post_init__(self):
        choices = (("store", get_args(Store)), ("dtype", get_args(StoreDtype)), ("crop", get_args(ImageCrop)))
        for name, kinds in choices:
            if getattr(self, name) not in kinds:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(kinds)}")
        if self.resize is None and self.crop != "none":
            raise ValueError(f"crop={self.crop!r} needs resize=, the side of the crop in pixels")

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the arrays of an entry: `latent`, or `mean` and `logvar`, or `mean` and `std`."""
        return {"moments": ("mean", "logvar"), "mean-std": ("mean", "std")}.get(self.store, ("latent",))

    @property
    def scaled(self) -> bool:
        """Whether the latents are scaled."""
        return self.store in ("mean", "sample")

    @property
    def channels(self) -> int:
        """Number of channels of a stored latent."""
        return self.architecture.latent_channels if self.scaled else self.architecture.z_channels

    @property
    def factor(self) -> int:
        """Pixels of the padded image per row or column of a stored latent."""
        return self.architecture.factor // (1 if self.scaled else self.architecture.patch)

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields as values for JSON, those of resizing only if images were resized."""
        fields = asdict(self) | {"architecture": self.architecture.to_dict()}
        if self.resize is None:  # keeps the digests of data sets of earlier versions
            del fields["resize"], fields["crop"]
        return fields

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Encoding":
        """Returns the encoding of a dictionary; the inverse of `to_dict`.

        Args:
          values: Fields by name.

        Raises:
          TypeError: If a field is missing or unknown.
          ValueError: If a field has an invalid value.
        """
        return cls(**{**values, "architecture": architecture_from_dict(values["architecture"])})


class Run(NamedTuple):
    """Consecutive entries of a shard with one size of latent: `count` of `height` x `width`."""

    height: int
    width: int
    count: int


@dataclass(frozen=True)
class ShardRecord:
    """Entry of a shard in the index.

    Attributes:
      file: Name of the shard.
      entries: Number of latents in the shard.
      runs: Sizes of the latents, in order.
      data_sha256: SHA-256 of the data after the file's header, as stored in the header.
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
    """Content of `index.json`.

    Attributes:
      encoding: Settings of the encoding.
      entries: Number of latents in all shards.
      images: Number of encoded images; half the entries if mirror images are stored.
      skipped: Number of images that could not be encoded.
      shards: Shards in order.
      statistics: Mean and deviation of each channel over all entries.
      storage: Format of the shards.
      columns: Which of `label` and `caption` the entries have.
    """

    encoding: Encoding
    entries: int
    images: int
    skipped: int
    shards: tuple[ShardRecord, ...]
    statistics: LatentStatistics
    storage: Storage = "safetensors"
    columns: tuple[str, ...] = ()


def images_file(part: int) -> str:
    """Returns the name of the image list for a part of the plan.

    Args:
      part: Number of the part, from 0.
    """
    return f"images-{part:05d}.jsonl"


def shard_file(number: int) -> str:
    """Returns the name of a shard.

    Args:
      number: Number of the shard.
    """
    return f"latents-{number:05d}.safetensors"


def dump_index(index: LatentIndex) -> str:
    """Returns the text of `index.json`, with one line per shard.

    Args:
      index: Index of the data set.
    """
    encoding = index.encoding
    told = {"scaled": encoding.scaled, "factor": encoding.factor, "channels": encoding.channels}
    head = {"format": FORMAT, "encoding": encoding.to_dict()} | told
    head |= {"statistics": index.statistics.to_dict()}
    head |= {"entries": index.entries, "images": index.images, "skipped": index.skipped}
    # Left out where they are the defaults, so that the index equals that of earlier versions.
    head |= {} if index.storage == "safetensors" else {"storage": index.storage}
    head |= {"columns": list(index.columns)} if index.columns else {}
    records = [asdict(shard) for shard in index.shards]
    head[_SELF] = _own_sha256(head | {"shards": records})
    shards = ",\n".join(f"    {json.dumps(record)}" for record in records)
    text = json.dumps(head, indent=2, allow_nan=False).removesuffix("\n}")
    return f'{text},\n  "shards": [\n{shards}\n  ]\n}}\n'


def read_latent_index(folder: Place) -> LatentIndex:
    """Reads `index.json`, without checking the shards.

    Args:
      folder: Folder of the data set, or its address in a bucket.

    Returns:
      Index of the data set.

    Raises:
      FileNotFoundError: If the folder is not a latent data set, or not a complete one.
      FileError: If the file is damaged, of a later format, or names files other than shards beside it.
    """
    path = address_below(folder, INDEX)
    if not exists_at(path):
        where = address_of(folder)
        if exists_at(address_below(folder, PLAN)):
            raise FileNotFoundError(f"{where} is not complete; run the same flax-vae encode again, which resumes it")
        raise FileNotFoundError(f"{where} holds no {INDEX}; expected a folder written by flax-vae encode")
    try:
        values = read_object(path, 1 << 28)
        if values["format"] not in (1, FORMAT):
            raise ValueError(f"its format is {values['format']!r}; expected 1 or {FORMAT}")
        shards = tuple(_shard_record(shard) for shard in values["shards"])
        encoding = Encoding.from_dict(values["encoding"])
        entries, images, skipped = (int(values[name]) for name in ("entries", "images", "skipped"))
        storage, columns = values.get("storage", "safetensors"), tuple(values.get("columns", ()))
        if storage not in get_args(Storage) or not set(columns) <= {"label", "caption"}:
            raise ValueError(f"it has storage {storage!r} and columns {columns!r}")
        if sum(shard.entries for shard in shards) != entries:
            raise ValueError(f"its shards do not hold {entries} entries in total")
        statistics = None
        if values["format"] != 1:
            statistics = LatentStatistics.from_dict(values["statistics"])
        if (statistics is not None or _SELF in values) and values.pop(_SELF) != _own_sha256(values):
            raise ValueError("its SHA-256 differs from its content")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path} is not the index of latents ({error}); get it again", path=path) from error
    statistics = statistics or _read_statistics(address_below(folder, STATISTICS))
    return LatentIndex(encoding, entries, images, skipped, shards, statistics, storage, columns)


def _own_sha256(values: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of an index's values, independent of whitespace."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _read_statistics(path: str) -> LatentStatistics:
    """Reads the statistics of a data set of format 1."""
    try:
        return LatentStatistics.from_dict(read_object(path, 1 << 28))
    except ValueError as error:
        raise FileError(f"{path} does not hold the statistics of latents: {error}", path=path) from error


def _shard_record(values: Mapping[str, Any]) -> ShardRecord:
    record = ShardRecord(**{**values, "runs": tuple(Run(*map(int, run)) for run in values["runs"])})
    if not _SHARD.fullmatch(record.file):  # the name comes from an untrusted file; nothing else may be opened
        raise ValueError(f"it names the shard {record.file!r}; expected a name of the form {shard_file(0)}")
    if sum(run.count for run in record.runs) != record.entries or any(min(run) < 1 for run in record.runs):
        raise ValueError(f"the sizes of {record.file} are not those of {record.entries} entries")
    return record
