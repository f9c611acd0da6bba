"""Labels and captions that lie beside image files: in files of the same name, or as the names of folders."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

from flax_vae.convert.console import printable
from flax_vae.convert.errors import shorten
from flax_vae.convert.files import loads_object
from flax_vae.errors import DataError

SUFFIXES = (".cls", ".json", ".txt")  # of files beside an image, as WebDataset calls them
LABEL_KEYS, CAPTION_KEYS = ("label", "cls"), ("caption", "text")  # in a .json file; the first that is there
MOST_CLASSES = 1 << 31  # labels are stored as 32-bit integers elsewhere
MOST_BYTES = 1 << 20  # of a file beside an image
LABEL_LIST = "dataset.json"  # at the top, as the data sets of StyleGAN and EDM have it
_MOST_LISTED = 1 << 28  # bytes of that file


class Annotations:
    """Labels and captions of image files, read when they are asked for.

    Labels come from one place for all images, decided once, from the first of these that is there:
      1. the list `labels` in a file `dataset.json` at the top, of pairs of a name and a number from 0;
      2. files `.cls` beside images, each a number from 0;
      3. the number `label` or `cls` in the `.json` files beside images, if the first of those has one (text, such as
         the name of a class, is noted and not read);
      4. the folders at the top, numbered from 0 in the order of their sorted names, as torchvision's `ImageFolder`
         does.  Images in folders below them belong to the folder at the top.  Folders without images have numbers too.
    An image for which that place has nothing has no label; neither has one outside the folders.

    A caption is the `.txt` file beside an image, or else `caption` or `text` in the `.json` file.  Endings
    may be in capitals.

    Attributes:
      classes: Names of the classes, if folders are the labels.
      files: Names of the files beside images that are read.
      notes: One line on the origin of labels, and one each for images without a label and folders without images.
    """

    def __init__(
        self,
        images: Sequence[str],
        folders: Collection[str],
        others: Collection[str],
        read: Callable[[str, int], bytes],
        key_of: Callable[[str], str],
        inside: Callable[[str], str] = lambda name: name,
    ):
        """Decides where labels come from.

        Args:
          images: Names of the images, paths with `/`.
          folders: Names of the folders at the top.
          others: Names of other files.
          read: Function that returns the content of one of the others, called with its name and the largest size.
          key_of: Function that returns the part of a name that an image shares with the files beside it.
          inside: Function that returns a name as it is below the folder or archive that holds the folders at the top.

        Raises:
          DataError: If a file that has to be read is damaged.
        """
        keys = {key_of(name) for name in images}
        besides = {name: key for name in others if name.lower().endswith(SUFFIXES) and (key := key_of(name)) in keys}
        self.files = frozenset(name for name, key in besides.items() if name[len(key) :].lower() in SUFFIXES)
        # Endings in capitals, as in `a.TXT` beside `a.JPG`, by the usual name.
        capitals = sorted(name for name in self.files if not name.endswith(SUFFIXES))
        self._capitals = {f"{besides[name]}{name[len(besides[name]) :].lower()}": name for name in capitals}
        self._listed: dict[str, Any] | None = None
        self._unread: str | None = None  # a label that is text
        self._images, self._read, self._key_of, self._inside = images, read, key_of, inside
        self.classes: tuple[str, ...] = ()
        if LABEL_LIST in others:
            self._listed = self._list()
        self._labels = LABEL_LIST if self._listed is not None else self._origin(folders)
        self.files |= {LABEL_LIST} if self._labels == LABEL_LIST else set()
        if self._labels == "folders":
            self.classes = tuple(sorted(folders))
        self._numbers = {name: number for number, name in enumerate(self.classes)}
        text = f"the labels of .json files are text ({self._unread!r:.80}) and are not read; write numbers from 0"
        self.notes = (*([] if self._unread is None else [text]), *self._notes())

    def label(self, index: int) -> int | None:
        """Returns the number of an image's class, from 0.

        Raises:
          DataError: If the file that holds it is damaged.
        """
        name = self._images[index]
        if self._listed is not None:
            value = self._listed.get(name)
            return None if value is None else label_number(value, f"{LABEL_LIST}[{printable(name)}]")
        if self._labels == "folders":
            return self._numbers.get(self._folder(name))
        if self._labels == ".cls":
            text = self._text(name, ".cls")
            return None if text is None else self._number(name, ".cls", text)
        if self._labels == ".json":
            value = _first(self._object(name), LABEL_KEYS)
            return None if value is None else self._number(name, ".json", value)
        return None

    def caption(self, index: int) -> str | None:
        """Returns the caption of an image.

        Raises:
          DataError: If the file that holds it is damaged.
        """
        name = self._images[index]
        text = self._text(name, ".txt")
        if text is not None:
            return text
        value = _first(self._object(name), CAPTION_KEYS)
        if value is not None and not isinstance(value, str):
            raise DataError(
                f"{self._beside(name, '.json')} has the caption {value!r:.80}; expected a string: correct or remove it"
            )
        return value

    def _origin(self, folders: Collection[str]) -> Literal[".cls", ".json", "folders"] | None:
        if any(name.lower().endswith(".cls") for name in self.files):
            return ".cls"
        first = next((name for name in self._images if self._beside(name, ".json") in self.files), None)
        value = None if first is None else _first(self._object(first), LABEL_KEYS)
        if isinstance(value, str) and not value.isdigit():
            self._unread = value
        elif value is not None:
            return ".json"
        return "folders" if folders else None

    def _list(self) -> dict[str, Any] | None:
        """Returns the labels in `dataset.json` by name; None if it has none."""
        try:
            pairs = loads_object(self._read(LABEL_LIST, _MOST_LISTED)).get("labels")
            return None if pairs is None else {str(name): label for name, label in pairs}
        except (TypeError, ValueError) as error:
            raise DataError(f"{LABEL_LIST} is not a list of labels ({error}); correct or remove it") from error

    def _notes(self) -> list[str]:
        if self._labels is None:
            return []
        if self._labels == LABEL_LIST:
            return [f"labels are the numbers in {LABEL_LIST}"]
        if self._labels != "folders":
            return [f"labels are the numbers in {self._labels} files beside images"]
        used = {self._folder(name) for name in self._images}
        notes = [
            f"labels are the {len(self.classes):,} folder{'s' if len(self.classes) != 1 else ''} at the top, sorted "
            f"({shorten(map(printable, self.classes))})"
        ]
        outside = [printable(name) for name in self._images if not self._folder(name)]
        if outside:
            notes.append(f"without a label: {len(outside):,} images outside these folders ({shorten(outside)})")
        empty = [printable(name) for name in self.classes if name not in used]
        if empty:
            notes.append(f"without images, but with a number: {len(empty):,} of these folders ({shorten(empty)})")
        return notes

    def _folder(self, name: str) -> str:
        """Returns the folder at the top that an image lies in; empty if it lies in none."""
        folder, slash, _ = self._inside(name).partition("/")
        return folder if slash else ""

    def _beside(self, name: str, suffix: str) -> str:
        usual = f"{self._key_of(name)}{suffix}"
        return usual if usual in self.files else self._capitals.get(usual, usual)

    def _content(self, name: str, suffix: str) -> bytes | None:
        file = self._beside(name, suffix)
        return self._read(file, MOST_BYTES) if file in self.files else None

    def _text(self, name: str, suffix: str) -> str | None:
        content = self._content(name, suffix)
        return None if content is None else decode_text(content, printable(self._beside(name, suffix)))

    def _object(self, name: str) -> dict[str, Any]:
        content = self._content(name, ".json")
        if content is None:
            return {}
        try:
            return loads_object(content)
        except ValueError as error:
            file = printable(self._beside(name, ".json"))
            raise DataError(f"{file} is not a JSON object ({error}); correct or remove it") from error

    def _number(self, name: str, suffix: str, value: Any) -> int:
        return label_number(value, printable(self._beside(name, suffix)))


def label_number(value: Any, where: str) -> int:
    """Returns a label as an integer.

    Args:
      value: An integer, or its digits.
      where: Name of the place that it comes from, for messages.

    Raises:
      DataError: If it is not an integer from 0 to 2**31 - 1.
    """
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:20])
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MOST_CLASSES:
        raise DataError(f"{where} has the label {value!r:.80}; expected a whole number from 0: correct or remove it")
    return value


def decode_text(content: bytes, where: str) -> str:
    """Returns UTF-8 text without surrounding white space.

    Args:
      content: The bytes.
      where: Name of the place that they come from, for messages.

    Raises:
      DataError: If they are not UTF-8.
    """
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text ({error.reason}); save it as UTF-8, or remove it") from error


def _first(values: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((values[key] for key in keys if values.get(key) is not None), None)
