"""The `manifest.json` of a checkpoint: the SHA-256 of each of its files and the number of its step.

Orbax finds few flipped bits by itself and restores the others silently.  `flax_vae.train.run.manifest` writes the
manifest into the folder of a step before orbax gives that folder its final name, so a step without one is older than
manifests or of another origin.  In a bucket, where nothing can be renamed, the manifest is the last object of a step,
and a folder without one is what an interrupted process left.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, cast

from flax_vae.convert.errors import AddressError, FileError
from flax_vae.convert.files.address import address_errors, is_address
from flax_vae.convert.files.json import read_object
from flax_vae.convert.files.objects import open_at, read_at

MANIFEST = "manifest.json"
FORMAT = 1
UNVERIFIED = f"it has no {MANIFEST}, so nothing says that it is whole"
_METADATA = "_CHECKPOINT_METADATA"  # orbax adds the time of the end to it after the manifest is written
_ADDED = "commit_timestamp_nsecs"
_SHOW = 3  # damaged files named in one sentence


@dataclass(frozen=True)
class Manifest:
    """The contents of one step.

    Attributes:
      files: path inside the step to SHA-256.
      scores: how good the model was, such as `psnr` in decibels.
      step: number of the step; None in manifests of earlier versions, which do not hold it.
    """

    files: Mapping[str, str]
    scores: Mapping[str, float] = field(default_factory=dict)
    step: int | None = None


def read_manifest(step: Path) -> Manifest | None:
    """Returns the manifest of a step, or None if it has none.

    Args:
      step: Folder of the checkpoint's step.

    Raises:
      FileError: if it is damaged.
      AddressError: if its bucket cannot be reached.
    """
    try:
        content = read_object(step / MANIFEST)
        expected = content.pop("sha256")
        if content["format"] != FORMAT or expected != digest_of(content):
            raise ValueError("its own SHA-256 is another")
        return Manifest(content["files"], content["scores"], content.get("step"))
    except FileNotFoundError:
        return None
    except AddressError:  # says nothing about the step
        raise
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise FileError(f"{MANIFEST} is damaged ({error or type(error).__name__})") from error


def read_verified(step: Path, name: str) -> bytes:
    """Returns the content of one file of a step, without comparing the others with the manifest.

    Args:
      step: Folder of the step.
      name: Path of the file inside it.

    Raises:
      FileError: If the file is not what the manifest says, or there is no manifest.
      AddressError: If its bucket cannot be reached.
    """
    manifest = read_manifest(step)
    try:
        content = read_at(step / name)
    except AddressError:
        raise
    except OSError as error:
        raise FileError(f"{step / name} cannot be read ({error.strerror})") from error
    if manifest is None or manifest.files.get(name) != hashlib.sha256(content).hexdigest():
        raise FileError(f"{step / name} is not what {MANIFEST} says")
    return content


def find_damage(step: Path) -> str | None:
    """Compares the files of a step, and the number that it is called by, with its manifest.

    Files that the manifest does not know are no damage: they cannot take a part in what is restored.  A step that is
    called by anything but a number may have been renamed on purpose.

    Args:
      step: Folder of the checkpoint's step.

    Returns:
      None if the step is as it was written, or what is wrong with it, in half a sentence.

    Raises:
      AddressError: if its bucket cannot be reached, which says nothing about the step.
    """
    try:
        manifest = read_manifest(step)
    except FileError as error:
        return str(error)
    if manifest is None:
        return UNVERIFIED
    # The folder's own name, also where it was given as "." or through a link.
    name = step.name if is_address(step) else step.resolve().name
    if manifest.step is not None and is_number(name) and int(name) != manifest.step:
        return f"its {MANIFEST} is that of step {manifest.step}: the folder was renamed or copied"
    wrong = []
    for name, expected in manifest.files.items():
        try:
            if digest_file(step, name) != expected:
                wrong.append(f"{name} has changed")
        except FileNotFoundError:
            wrong.append(f"{name} is missing")
        except AddressError:
            raise
        except (OSError, ValueError) as error:
            wrong.append(f"{name} cannot be read ({error})")
    if not wrong:
        return None
    more = f" and {len(wrong) - _SHOW} more of its {len(manifest.files)} files" if len(wrong) > _SHOW else ""
    return ", ".join(wrong[:_SHOW]) + more


def note_on_number(step: Path) -> str | None:
    """Returns a sentence about a whole step whose manifest does not hold its number, or None if it does.

    Args:
      step: Folder of the checkpoint's step.

    Raises:
      FileError: if the manifest is damaged.
    """
    manifest = read_manifest(step)
    if manifest is None or manifest.step is not None:
        return None
    return (
        f"{step} was written by an earlier version, whose {MANIFEST} does not hold the number of the step; its name "
        "is taken for it"
    )


def is_number(name: str) -> bool:
    """Returns whether a folder is called by the number of a step, as `str` writes it.

    Args:
      name: Name of the folder.
    """
    return name.isascii() and name.isdecimal() and name == str(int(name))


def digest_file(step: Path, name: str) -> str:
    """Returns the SHA-256 of one file, in hexadecimal, without what orbax adds to it afterwards.

    Args:
      step: Folder of the checkpoint's step.
      name: Path of the file inside it.

    Raises:
      OSError: if it cannot be read.
      ValueError: if the name leaves the folder, or the file is metadata that are not JSON.
    """
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError("its name leads out of the folder")
    if name == _METADATA:
        content = read_object(step / name)
        return digest_of({key: value for key, value in content.items() if key != _ADDED})
    with address_errors(step / name), open_at(step / name) as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def digest_of(content: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of what a JSON object means, in hexadecimal: spaces and the order of names do not matter.

    Args:
      content: JSON object.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
