"""What a checkpoint held when it was written: a SHA-256 of every file, in a `manifest.json` beside them.

Orbax finds few flipped bits by itself and restores the others silently.  The manifest is written into the folder of a
step before orbax gives that folder its final name, so a step without one is older than manifests, or a stranger's.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.errors import RunError

MANIFEST = "manifest.json"
_FORMAT = 1
_COMMITTED = "commit_success.txt"  # orbax adds it afterwards, and misses it by itself
_METADATA = "_CHECKPOINT_METADATA"  # orbax adds the time of the end to it afterwards
_ADDED = "commit_timestamp_nsecs"
_SHOW = 3  # damaged files named in one sentence


@dataclass(frozen=True)
class Manifest:
    """The contents of one step.

    Attributes:
      files: path inside the step to SHA-256.
      scores: how good the model was, such as `psnr` in decibels.
    """

    files: Mapping[str, str]
    scores: Mapping[str, float] = field(default_factory=dict)


def write_manifest(step: str | os.PathLike[str], scores: Mapping[str, float] | None = None) -> None:
    """Declares the files in the folder of a step to be what they should be; reads them all, at about 1.4 GB/s.

    The manifest is written under another name and renamed when it is on the disk.

    Args:
      step: the folder.
      scores: to be kept with it; those that are not finite are left out.

    Raises:
      OSError: if the files cannot be read or the manifest cannot be written.
      ValueError: if the metadata in it are damaged.
    """
    folder = Path(step)
    finite = {name: float(value) for name, value in (scores or {}).items() if math.isfinite(value)}
    content: dict[str, Any] = {"format": _FORMAT, "files": _digests(folder), "scores": finite}
    content["sha256"] = _digest_of(content)
    temporary = folder / f"{MANIFEST}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST)
    _sync_folder(folder)


def read_manifest(step: Path) -> Manifest | None:
    """Returns the manifest of a step, or None if it has none.

    Raises:
      RunError: if it is damaged.
    """
    try:
        content = json.loads((step / MANIFEST).read_bytes())
        expected = content.pop("sha256")
        if content["format"] != _FORMAT or expected != _digest_of(content):
            raise ValueError("its own SHA-256 is another")
        return Manifest(content["files"], content["scores"])
    except FileNotFoundError:
        return None
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise RunError(f"{MANIFEST} is damaged ({error or type(error).__name__})") from error


def find_damage(step: Path) -> str | None:
    """Compares every file of a step with its manifest.

    Files that the manifest does not know are no damage: they cannot take a part in what is restored.

    Returns:
      None if the step is as it was written, or what is wrong with it, in half a sentence.
    """
    try:
        manifest = read_manifest(step)
    except RunError as error:
        return str(error)
    if manifest is None:
        return f"it has no {MANIFEST}, so nothing says that it is whole"
    wrong = []
    for name, expected in manifest.files.items():
        try:
            if _digest(step, name) != expected:
                wrong.append(f"{name} has changed")
        except FileNotFoundError:
            wrong.append(f"{name} is missing")
        except (OSError, ValueError) as error:
            wrong.append(f"{name} cannot be read ({error})")
    if not wrong:
        return None
    more = f" and {len(wrong) - _SHOW} more of its {len(manifest.files)} files" if len(wrong) > _SHOW else ""
    return ", ".join(wrong[:_SHOW]) + more


def _digests(folder: Path) -> dict[str, str]:
    paths = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    ours = {MANIFEST, f"{MANIFEST}.tmp", _COMMITTED}
    return {name: _digest(folder, name) for name in paths if name not in ours}


def _digest(folder: Path, name: str) -> str:
    if name == _METADATA:
        content = json.loads((folder / name).read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        return _digest_of({key: value for key, value in content.items() if key != _ADDED})
    with open(folder / name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Puts the new name itself on the disk, which POSIX does not do with the file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
