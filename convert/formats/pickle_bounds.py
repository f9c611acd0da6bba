"""Bounds on a pickle, checked before PyTorch reads it: refuses small files that would take gigabytes or hours."""

import io
import os
import pickletools
import zipfile
from typing import IO

from flax_vae.convert.files import check_members

_MAX_PICKLE = 8 << 20  # bytes of names and shapes; those of a whole Stable Diffusion checkpoint take under 1 MB
_MAX_ITEMS = 1_000_000  # in one tuple and the tuples inside it, each counted as often as it is referenced
_LEGACY_PICKLES = 4  # before the data in a file of PyTorch < 1.6: magic number, version, system, content
_LEGACY_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


def check_bounds(path: str | os.PathLike[str]) -> None:
    """Checks that a checkpoint has no extreme compression and no too large pickle, and not too many parts.

    Raises:
      ValueError: If a bound is exceeded; names the bound.
      OSError: If the file cannot be read.
      zipfile.BadZipFile: If the archive is damaged.
      zlib.error: If the archive is damaged.
      NotImplementedError: If the archive is damaged.
    """
    if zipfile.is_zipfile(path):
        _check_archive(path)
    else:
        _check_legacy(path)


def _check_archive(path: str | os.PathLike[str]) -> None:
    with zipfile.ZipFile(path) as archive:
        for member in check_members(archive):
            if member.filename.endswith("data.pkl"):
                if member.file_size > _MAX_PICKLE:
                    raise ValueError(f"its pickle has {member.file_size:,} bytes; expected at most {_MAX_PICKLE:,}")
                with archive.open(member) as stream:
                    _check_tuples(io.BytesIO(stream.read()))


def _check_legacy(path: str | os.PathLike[str]) -> None:
    """Checks a file of PyTorch < 1.6; ignores other files, which PyTorch refuses."""
    with open(path, "rb") as file:
        if _LEGACY_MAGIC not in file.read(32):
            return
        file.seek(0)
        start = io.BytesIO(file.read(_MAX_PICKLE))
    for _ in range(_LEGACY_PICKLES):
        _check_tuples(start)


def _check_tuples(stream: IO[bytes]) -> None:
    """Checks that no tuple contains others so often that hashing it would not finish."""
    if _largest_tuple(stream) > _MAX_ITEMS:
        raise ValueError(f"it holds a tuple of more than {_MAX_ITEMS:,} items")


def _largest_tuple(stream: IO[bytes]) -> int:
    """Returns the number of items in a pickle's largest tuple, over all levels; stops at the first that is too large.

    Simulates the stack of the pickle with the number of items in place of each object.  A damaged pickle ends the
    count; PyTorch reports the damage.
    """
    largest, stack, memo = 0, [], {}
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in ("BINGET", "LONG_BINGET", "GET"):
                stack.append(memo[argument])
                continue
            if opcode.name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
                memo[len(memo) if argument is None else argument] = stack[-1]
                continue
            taken = []
            for kind in reversed(opcode.stack_before):
                if kind is pickletools.stackslice:
                    while stack[-1] is not None:  # the mark
                        taken.append(stack.pop())
                else:
                    taken.append(stack.pop() or 0)
            items = 1 + (sum(taken) if "TUPLE" in opcode.name else 0)
            largest = max(largest, items)
            if largest > _MAX_ITEMS:
                break
            stack += [None if kind is pickletools.markobject else items for kind in opcode.stack_after]
    except (IndexError, KeyError, ValueError):
        pass
    return largest
