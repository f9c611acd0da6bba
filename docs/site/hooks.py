"""MkDocs hooks: generated parts of pages, and links to files outside this folder.

`<!-- generated: NAME -->` in a page is replaced by the Markdown that the function NAME of `pages.py` returns.  A link
to a file outside `docs/` works on GitHub as it is; here the file becomes part of the site.
"""

import os
import posixpath
import re
from pathlib import Path

import pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
_MARK = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)
_FENCE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Takes the pages from the folder of `mkdocs.yml`, and lists those of a section that it does not name."""
    config.docs_dir = str(DOCS)
    for section in config.nav or []:
        for title, pages_ in section.items() if isinstance(section, dict) else ():
            folder = DOCS / title.lower()
            if folder.is_dir() and isinstance(pages_, list):
                found = (path.relative_to(DOCS).as_posix() for path in sorted(folder.glob("*.md")))
                listed = {path for page in pages_ for path in (page.values() if isinstance(page, dict) else [page])}
                pages_ += [name for name in found if name not in listed]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Fills in the generated parts, and adds the files outside `docs/` that pages link to."""
    for page in [file for file in files.documentation_pages() if file.abs_src_path]:
        text = _MARK.sub(_generate, Path(page.abs_src_path or "").read_text(encoding="utf-8"))
        page.content_string = _map_links(text, page.src_uri, files, config)
    return files


def _generate(mark: re.Match) -> str:
    function = getattr(pages, mark[1].replace("-", "_"), None)
    if function is None:
        raise PluginError(f"docs/site/pages.py has no function {mark[1]!r}, which a page asks for")
    return function()


def _map_links(text: str, source: str, files: Files, config: MkDocsConfig) -> str:
    """Returns the text with links to files outside `docs/` replaced by links into the site."""

    def target(link: re.Match) -> str:
        before, address, anchor, after = link[1], link[2], link[3] or "", link[4]
        if ":" in address:
            return link[0]
        path = Path(os.path.normpath(DOCS / posixpath.dirname(source) / address))
        if path.is_relative_to(DOCS) and path.is_dir():  # GitHub lists a folder
            first = next(iter([*path.glob("index.md"), *sorted(path.glob("*.md"))]), None)
            return link[0] if first is None else f"{before}{address.rstrip('/')}/{first.name}{anchor}{after}"
        if path.is_relative_to(DOCS) or not path.is_file():
            return link[0]  # MkDocs checks it
        name = path.relative_to(ROOT).as_posix()
        if name == "README.md":
            inside = "index.md"
        elif name == "CHANGELOG.md":
            inside = "changelog.md"
        else:
            # MkDocs leaves out names that begin with a dot; browsers show plain text, and download other files.
            inside = f"files/{name.lstrip('.')}" + ("" if path.suffix in (".png", ".jpg", ".webp") else ".txt")
            if files.get_file_from_path(inside) is None:
                files.append(File.generated(config, inside, abs_src_path=str(path)))
        return f"{before}{posixpath.relpath(inside, posixpath.dirname(source) or '.')}{anchor}{after}"

    parts, end = [], 0
    for code in _FENCE.finditer(text):  # code keeps its brackets
        parts += [_LINK.sub(target, text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, _LINK.sub(target, text[end:])])
