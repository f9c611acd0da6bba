"""Checks the links inside a built site: `python -m tests.check_links build/site` prints those that lead nowhere."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors that a page has, and the addresses that it names."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = {""}
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id" or (name == "name" and tag == "a"):
                self.anchors.add(value or "")
            elif name in ("href", "src") and value:
                self.addresses.append(value)


def dead_links(site: Path) -> list[str]:
    """Returns a line for each link of the site to a file or an anchor that it does not have."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    dead = []
    for path, page in pages.items():
        for address in page.addresses:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            # 404.html names everything from the root, because it answers for pages at any depth.
            folder = site if parts.path.startswith("/") else path.parent
            target = (folder / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            anchor = unquote(parts.fragment)
            missing = not target.is_relative_to(site.resolve()) or not target.is_file()
            if missing or (target in pages and anchor not in pages[target].anchors):
                dead.append(f"{path.relative_to(site)}: {address}")
    return dead


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    found = dead_links(folder)
    print("\n".join([*found, f"{len(found)} dead links in {len(list(folder.rglob('*.html')))} pages"]))
    sys.exit(bool(found) or not (folder / "index.html").is_file())
