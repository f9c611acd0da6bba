"""The images of a data set in parts: those of the first start, and those of each `--append`.

A part is a file with names and sizes, whose digest is in the plan.  A shard is a pure function of its part, so a new
part leaves earlier shards unchanged.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from flax_vae.convert.console import printable
from flax_vae.convert.errors import shorten_sentences
from flax_vae.convert.files import read_at
from flax_vae.convert.latents import NO_LABEL, images_file
from flax_vae.errors import DataError, UserError
from flax_vae.folders.batches import BatchLimits, ImageEntry, Shard, plan_shards
from flax_vae.folders.output_folder import some
from flax_vae.images import ImageScan, in_threads, require_storage


class PlannedImage(NamedTuple):
    """One image of a part.

    Attributes:
      name: Name within the source.
      height: Height in pixels, upright; None if the image's header cannot be read.
      width: Width in pixels, upright; None if the image's header cannot be read.
      label: Number of the class; None if the source has none.
      caption: Text that describes the image; None if the source has none.
    """

    name: str
    height: int | None
    width: int | None
    label: int | None = None
    caption: str | None = None

    @property
    def described(self) -> bool:
        """Whether the image has a label or a caption."""
        return self.label is not None or self.caption is not None


@dataclass(frozen=True)
class Part:
    """Images that are encoded together.

    Attributes:
      rows: The images, in the order of the source.
      first: Number of the first of them.
    """

    rows: tuple[PlannedImage, ...]
    first: int

    @cached_property
    def text(self) -> str:
        """Content of the part's file."""
        # Without labels and captions, as in lists of earlier versions.
        return "".join(f"{json.dumps(row if row.described else row[:3])}\n" for row in self.rows)

    @cached_property
    def described(self) -> bool:
        """Whether any image has a label or a caption."""
        return any(row.described for row in self.rows)

    @cached_property
    def record(self) -> dict[str, Any]:
        """Entry of the part in the plan."""
        return {"images": len(self.rows), "sha256": hashlib.sha256(self.text.encode()).hexdigest()}

    def shards(self, first: int, multiple: int, grouping: BatchLimits, *, one_size: bool = False) -> list[Shard]:
        """Returns the shards of the part, numbered from `first`; see `flax_vae.folders.batches.plan_shards`."""
        # Either all entries of a part have a label, or none has; so it is with captions.  Loaders expect equal keys.
        label = NO_LABEL if any(row.label is not None for row in self.rows) else None
        caption = "" if any(row.caption is not None for row in self.rows) else None
        pictures = [
            ImageEntry(
                number,
                row.name,
                row.height,
                row.width,
                label if row.label is None else row.label,
                caption if row.caption is None else row.caption,
            )
            for number, row in enumerate(self.rows, self.first)
            if row.height is not None and row.width is not None
        ]
        shards = plan_shards(pictures, multiple, grouping, one_size=one_size)
        return [Shard(first + shard.number, shard.batches) for shard in shards]


def images_of(found: ImageScan) -> list[PlannedImage]:
    """Returns all images of a scan, in the order of the source, with their labels and captions.

    Raises:
      DataError: If a label or a caption is damaged.
      StorageError: If one cannot be fetched.
    """
    source, annotations, errors = found.source, {}, []
    for index, text in in_threads(lambda index: (source.label(index), source.caption(index)), found.sizes):
        if isinstance(text, DataError):
            errors.append(text)
        else:
            annotations[index] = text
    require_storage(errors)
    if errors:
        raise DataError(shorten_sentences(map(str, errors)))
    nothing = None, None
    return [
        PlannedImage(name, *found.sizes.get(index, nothing), *annotations.get(index, nothing))
        for name, index in found.positions.items()
    ]


def resolve_parts(folder: Path, found: ImageScan, records: Sequence[dict[str, Any]], append: bool) -> list[Part]:
    """Divides the images of a source among the parts of a plan.

    Args:
      folder: Folder of the data set, which holds the lists of the parts.
      found: Images of the source.
      records: Parts of the plan; empty before the first start.
      append: Whether new images become a new part.

    Raises:
      UserError: If images of the plan were removed or changed their size, label or caption, or images were added and
        `append` is False.
    """
    images = images_of(found)
    if len(records) <= 1:  # the usual case; no file needs to be read
        part = Part(tuple(images), 0)
        if not records or records[0] == part.record:
            return [part]
    now = {row.name: row for row in images}
    parts: list[Part] = []
    gone: list[str] = []
    changed: list[str] = []
    for index, record in enumerate(records):
        part = Part(_read(folder / images_file(index), record), sum(len(part.rows) for part in parts))
        parts.append(part)
        for row in part.rows:
            present = now.pop(row.name, None)
            if present is None:
                gone.append(printable(row.name))
            elif present[:3] != row[:3]:
                changed.append(f"{printable(row.name)} {_size(row)}, now {_size(present)}")
            elif part.described and present != row:  # earlier versions stored no labels and captions
                changed.append(f"label or caption of {printable(row.name)}")
    _refuse(folder, found, gone, changed, [] if append else [printable(name) for name in now])
    return [*parts, Part(tuple(now.values()), sum(len(part.rows) for part in parts))] if now else parts


def _refuse(folder: Path, found: ImageScan, gone: list[str], changed: list[str], new: list[str]) -> None:
    told = [
        f"{len(names):,} {what} ({some(names)})"
        for names, what in ((gone, "removed"), (changed, "changed"), (new, "added"))
        if names
    ]
    if told:
        remedy = "encode the new ones too with --append"
        if gone or changed:
            remedy = "restore the images, choose another folder, or begin anew with --force"
        raise UserError(
            f"the images in {found.source.where} differ from those that {printable(folder)} was started with: "
            f"{', '.join(told)}; {remedy}"
        )


def _read(path: Path, record: dict[str, Any]) -> tuple[PlannedImage, ...]:
    try:
        content = read_at(path)
        if hashlib.sha256(content).hexdigest() != record["sha256"]:
            raise ValueError("its SHA-256 differs from that in the plan")
        return tuple(PlannedImage(*json.loads(line)) for line in content.splitlines())
    except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is missing or damaged ({error}), so images cannot be compared; restore it, choose another folder, "
            "or begin anew with --force",
            path=path,
        ) from error


def _size(row: PlannedImage) -> str:
    return "unreadable" if row.height is None else f"{row.height} x {row.width}"
