"""Generated parts of pages, as Markdown, from the code and the files of the repository."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def readme() -> str:
    """Returns the README, with links as seen from `docs/`."""
    return _from_root("README.md")


def changelog() -> str:
    """Returns the changelog, with links as seen from `docs/`."""
    return _from_root("CHANGELOG.md")


def _from_root(name: str) -> str:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"(\]\()(?![a-z]+:|#)(docs/)?", lambda link: link[1] + ("" if link[2] else "../"), text)
