"""Writes the manifest of a checkpoint, which `flax_vae.convert.files.manifest` reads and documents."""

import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax_vae.convert.files import (
    FORMAT,
    MANIFEST,
    as_path,
    digest_file,
    digest_of,
    is_address,
    is_number,
    list_at,
    partial_of,
    write_at,
)

_COMMITTED = "commit_success.txt"  # added by orbax afterwards, which also checks that it is there


def write_manifest(
    step: str | os.PathLike[str], scores: Mapping[str, float] | None = None, number: int | None = None
) -> None:
    """Records the files in the folder of a step as correct; reads them all, at about 1.4 GB/s.

    The manifest is written whole: under a temporary name that is renamed, or as one object of a bucket.

    Args:
      step: Folder of the step.
      scores: Scores to store with it; those that are not finite are left out.
      number: Number of the step; None takes it from the name of the folder, if that is a number.

    Raises:
      OSError: If there are no files, they cannot be read or the manifest cannot be written.
      ValueError: If the metadata in the folder are damaged.
    """
    folder = as_path(step)
    name = folder.name if is_address(folder) else folder.resolve().name
    if number is None and is_number(name):
        number = int(name)
    files = _digests(folder)
    if not files:  # the folder was deleted meanwhile: a manifest alone would pass for an intact step
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(folder))
    finite = {name: float(value) for name, value in (scores or {}).items() if math.isfinite(value)}
    content: dict[str, Any] = {"format": FORMAT, "step": number, "files": files, "scores": finite}
    content["sha256"] = digest_of(content)
    write_at(folder / MANIFEST, json.dumps(content, indent=1).encode())


def _digests(folder: Path) -> dict[str, str]:
    paths = [entry.name for entry in list_at(folder, recursive=True)]
    ours = {MANIFEST, f"{MANIFEST}.tmp", _COMMITTED}  # earlier versions left the second one
    return {name: digest_file(folder, name) for name in paths if name not in ours and partial_of(name) != MANIFEST}
