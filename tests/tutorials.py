"""Runs the pages of docs/tutorials as programs, as Jupytext runs them as notebooks.

`python -m tests.tutorials PAGE` runs a page in the current folder and writes its outputs and pictures into docs.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent.parent / "docs" / "tutorials"
PAGES = {path.stem: path for path in sorted(FOLDER.glob("*.md")) if path.stem != "index"}
PICTURE = re.compile(r"!\[[^\]]+\]\(pictures/([\w.-]+)\)")
# A cell, and the output that the page shows for it.
_CELL = re.compile(r"^```(python|bash)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
_END = "\x1e"  # printed after every cell
_NUMBER = re.compile(r"-?\d[\d,]*(\.\d+)?(e[+-]?\d+)?")


class Cell(NamedTuple):
    """A block of code of a page.

    Attributes:
      language: `python` or `bash`.
      source: Code.
      output: Text that the page shows below it; None for a cell without one.
    """

    language: str
    source: str
    output: str | None


def cells(text: str) -> list[Cell]:
    """Returns the cells of a page, in order."""
    return [Cell(*match.groups()) for match in _CELL.finditer(text)]


def run(page: Path, folder: Path, environment: Mapping[str, str] | None = None) -> list[str]:
    """Runs the cells of a page in one process, in a folder; returns what each printed.

    Raises:
      RuntimeError: If a cell fails.
    """
    program = ["import subprocess"]
    for cell in cells(page.read_text("utf-8")):
        source = cell.source
        if cell.language == "bash":
            source = f"subprocess.run(['bash', '-euc', {source!r}], check=True)\n"
        program.append(f"{source}\nprint({_END!r}, end='', flush=True)")
    environment = {**os.environ, **(environment or {})}
    # Commands are those of this Python.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [sys.executable, "-u", "-c", "\n".join(program)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"{page.name}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout.split(_END)[:-1]


def agree(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed: the same words and numbers of any value; `...` stands for any lines."""
    pattern = "".join(".*" if line == "..." else re.escape(line + "\n") for line in masked(shown).splitlines())
    return re.fullmatch(pattern, masked(printed), re.DOTALL) is not None


def masked(text: str) -> str:
    lines = (" ".join(_NUMBER.sub("#", line).split()) for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines)


def _update(page: Path, folder: Path) -> None:
    text, outputs = page.read_text("utf-8"), iter(run(page, folder))

    def shown(match: re.Match[str]) -> str:
        printed = next(outputs)
        print(printed)
        if match[3] is None or ("\n...\n" in f"\n{match[3]}" and agree(match[3], printed)):
            return match[0]
        return f"```{match[1]}\n{match[2]}```\n\n```text\n{printed}```\n"

    page.write_text(_CELL.sub(shown, text), "utf-8")
    for name in PICTURE.findall(text):
        shutil.copy(folder / name, page.parent / "pictures" / name)


if __name__ == "__main__":
    _update(PAGES[sys.argv[1]], Path.cwd())
