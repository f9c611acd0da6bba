"""How docstrings, help texts, messages and names read."""

import ast
import importlib.util
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

# An argument line begins with a noun.
BEGINS_BADLY = re.compile(r"(of|its|the same|likewise)\b", re.IGNORECASE)

# Words that neither JAX's documentation nor PyTorch's would use.
FORBIDDEN = re.compile(
    r"\b(nobody|no one|anyone's guess|lest|be it|a heap of|baggage|players?|(?<!there )is no(?= )(?! longer)"
    r"|what is [\w' ]+ is|so many|so much(?! as)|likewise|a person|whoever|thereof|whence|hence)\b",
    re.IGNORECASE,
)

# Names that have better ones: of anything, and of functions, classes and modules alone.
OLD_NAMES = re.compile(
    "understand|UNTOLD|BAGGAGE|settled|settle|Moments|moments_from_torch|get_moments|set_moments|LatentMoments"
    "|RunningMoments|new_folder|new_file|at_scale|Picture|Grouping|DecodeRun|_lies|Shift|Attend|ENCODES|DECODES"
    "|rematerialised|then_swish|bring_here|map_here|place_whole|unlearned|playing|_judge|_Judgement|fool"
    "|tell_apart|player|record|_greet|_look|_warn|said|transparent_start|make_transparent|TRANSPARENT"
)
OLD_DEFINITIONS = re.compile("averaged|_?wide|kinds|learned|Parts|Clock|fit|largest|below|alone|forget")
# A shard of a latent data set has a record, as its index calls it.
OTHER_RECORDS = ("flax_vae.convert.latents", "flax_vae.folders")

PACKAGES = ("flax_vae", "flax_vae.convert", "flax_vae.train", "torch_ref")


def rooms() -> dict[str, list[Path]]:
    """Files of each room; a file beside the rooms is one of its own."""
    found: dict[str, list[Path]] = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)  # torch_ref cannot be imported without PyTorch
        assert spec is not None and spec.origin is not None
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if package != "flax_vae" or parts[0] not in ("convert", "train"):
                found.setdefault(f"{package}.{parts[0]}", []).append(path)
    return found


ROOMS = rooms()


def docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    """Strings that stand alone: docstrings, and the help texts below the fields of a dataclass."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value


def argument_lines(docstring: str) -> Iterator[str]:
    """Texts of the lines `name: text` below Args and Attributes."""
    section = indent = None
    for line in textwrap.dedent(docstring).splitlines():
        depth = len(line) - len(line.lstrip())
        if heading := re.fullmatch(r" *(Args|Attributes|Returns|Yields|Raises|Example|Examples):", line):
            section, indent = heading[1], None
        elif section in ("Args", "Attributes") and (entry := re.match(r" +\*{0,2}\w+(, \*{0,2}\w+)*: +(.*)", line)):
            indent = depth if indent is None else indent
            if depth == indent:
                yield entry[2]


def help_texts(tree: ast.AST) -> Iterator[str]:
    """Texts below the fields of a class, and those given as `help=`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for field, text in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    yield str(ast.literal_eval(text.value))
        elif isinstance(node, ast.keyword) and node.arg == "help":
            yield from (part.value for part in ast.walk(node.value) if is_text(part))


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every identifier and its line."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname"):
            name = getattr(node, field, None)
            if isinstance(name, str):
                for part in name.split("."):
                    yield part, getattr(node, "lineno", 0)
        if isinstance(node, ast.ImportFrom):
            for part in (node.module or "").split("."):
                yield part, node.lineno


def faults(source: str, room: str) -> Iterator[str]:
    """What is wrong in the source of a file of a room."""
    tree = ast.parse(source)
    for docstring in docstrings(tree):
        for text in argument_lines(docstring.value):
            if BEGINS_BADLY.match(text):
                yield f"line {docstring.lineno}: {text!r} does not begin with a noun"
    for text in help_texts(tree):
        if BEGINS_BADLY.match(text):
            yield f"help {text!r} does not begin with a noun"
    for node in ast.walk(tree):
        if is_text(node):
            for word in FORBIDDEN.finditer(node.value):
                yield f"line {node.lineno}: {word[0]!r} in {node.value[max(word.start() - 30, 0) : word.end() + 30]!r}"
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            for word in FORBIDDEN.finditer(token.string):
                yield f"line {token.start[0]}: {word[0]!r} in the comment {token.string!r}"
    for name, line in names(tree):
        if OLD_NAMES.fullmatch(name) and not (name == "record" and room in OTHER_RECORDS):
            yield f"line {line}: the old name {name!r}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and OLD_DEFINITIONS.fullmatch(node.name):
            yield f"line {node.lineno}: the old name {node.name!r}"


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_language(room):
    assert [f"{path}: {fault}" for path in ROOMS[room] for fault in faults(path.read_text("utf-8"), room)] == []


def test_what_is_found():
    source = '''
"""Like nobody else."""
# Lest it be it.

class Flags:
    """Settings.

    Attributes:
      width: Of the image.
        the same
      *others, more: The same for others.
      good: Width of the image, of its first row.
    """

    width: int = 3
    """Its width."""
    height: int = arg(help="Likewise the height.")

def new_file(record, averaged):
    """Does it.

    Args:
      record: its record
    """

def averaged(): ...
'''
    found = [fault.partition(": ")[2] or fault for fault in faults(source, "flax_vae.loading")]
    assert found == [
        "'Of the image.' does not begin with a noun",
        "'The same for others.' does not begin with a noun",
        "'its record' does not begin with a noun",
        "help 'Its width.' does not begin with a noun",
        "help 'Likewise the height.' does not begin with a noun",
        "'nobody' in 'Like nobody else.'",
        "'Likewise' in 'Likewise the height.'",
        "'Lest' in the comment '# Lest it be it.'",
        "'be it' in the comment '# Lest it be it.'",
        "the old name 'new_file'",
        "the old name 'record'",
        "the old name 'averaged'",
    ]
