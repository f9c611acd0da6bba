"""Names of decoded images, as a pure function of the names of all encoded images."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from flax_vae.convert.console import printable
from flax_vae.convert.errors import FileError
from flax_vae.convert.files import shortened

SUFFIX = ".png"
_ESCAPED = {character: f"%{ord(character):02X}" for character in "\\:"}  # special in paths on Windows


def target_names(names: Sequence[str]) -> list[PurePosixPath]:
    """Returns the path of each image, relative to the folder.

    The ending becomes `.png`.  If two names would collide, `.png` is appended to the old ending instead; if they still
    collide, a digest of the name is inserted.  In names of files and folders, backslash and colon are written as `%5C`
    and `%3A`, and names longer than 255 bytes are cut, with a digest at the end.

    Args:
      names: Paths of all images within the source.

    Raises:
      FileError: If a name leads outside the folder, or occurs twice.
    """
    paths = [_checked(name) for name in names]
    chosen: list[PurePosixPath] = []
    for form in (_replaced, _added, _digested):
        # Names that collide take the next form and keep it, so the loop ends.
        wrong = _colliding(chosen) if chosen else set(range(len(paths)))
        chosen = [form(path) if index in wrong else chosen[index] for index, path in enumerate(paths)]
    wrong = _colliding(chosen)
    if wrong:
        first = printable(names[min(wrong)])
        raise FileError(f"the image {first!r} has the name of another one; rename one of them and encode again")
    return chosen


def _checked(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or not path.name or ".." in path.parts or "\0" in name:
        raise FileError(
            f"the latents name the image {printable(name)!r}, which leads outside; rename it and encode again"
        )
    return path


def _colliding(paths: Sequence[PurePosixPath]) -> set[int]:
    """Returns the positions of paths that equal another path, or a folder of one."""
    often, folders = Counter(paths), {parent for path in paths for parent in path.parents}
    return {index for index, path in enumerate(paths) if often[path] > 1 or path in folders}


def _replaced(path: PurePosixPath) -> PurePosixPath:
    return _written(path, lambda name: PurePosixPath(name).stem)


def _added(path: PurePosixPath) -> PurePosixPath:
    return _written(path, lambda name: name)


def _digested(path: PurePosixPath) -> PurePosixPath:
    digest = hashlib.sha256(os.fsencode(str(path))).hexdigest()[:16]
    return _written(path, lambda name: f"{PurePosixPath(name).stem}~{digest}")


def _written(path: PurePosixPath, stem: Callable[[str], str]) -> PurePosixPath:
    folders = [shortened(_escaped(part)) for part in path.parts[:-1]]
    return PurePosixPath(*folders, shortened(_escaped(stem(path.name)) + SUFFIX))


def _escaped(name: str) -> str:
    return "".join(_ESCAPED.get(character, character) for character in name)
