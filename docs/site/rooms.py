"""The rooms of the packages as a picture, from the order in `tests/test_layering.py` and the imports of the files."""

import ast
import re
from html import escape
from pathlib import Path

# Names of packages by their folders, from the ground up.
PACKAGES = {"flax_vae.convert": "convert", "flax_vae": "flax_vae", "flax_vae.train": "train"}
TWINS = "twins of torch_ref"

_WIDTH, _BOX, _HEIGHT, _GAP = 190, 26, 34, 130  # pixels: a box, its height, the distance of two boxes, of two packages
_STYLE = "font:13px sans-serif"


def layering(root: Path) -> dict[str, list[str]]:
    """Returns the rooms of each package, each before those that import it, as the test lists them."""
    tree = ast.parse((root / "tests/test_layering.py").read_text(encoding="utf-8"))
    (node,) = [node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ORDER"]
    return eval(compile(ast.Expression(node.value), "ORDER", "eval"))  # a literal, with starred parts


def descriptions(root: Path) -> dict[str, list[tuple[str, str]]]:
    """Returns the name and the first line of the docstring of each room and each file beside rooms, by package."""
    found: dict[str, list[tuple[str, str]]] = {}
    for package, names in layering(root).items():
        folder = root / PACKAGES[package]
        found[package] = []
        for name in names:
            path = folder / name / "__init__.py"
            path = path if path.is_file() else folder / f"{name}.py"
            about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[package].append((f"`{name}`", " ".join(about.split("\n\n")[0].split())))
    return found


def imports(root: Path) -> dict[str, dict[str, set[str]]]:
    """Returns which rooms of its package each room imports, with the twins of `torch_ref` as one."""
    # `numerics` stands among the models, `trace` runs them.
    mirrored = {path.stem for path in (root / "torch_ref").glob("*.py")} - {"trace"} | {"numerics"}
    result = {}
    for package, names in layering(root).items():
        edges: dict[str, set[str]] = {}
        for name in names:
            path = root / PACKAGES[package] / name
            files = list(path.glob("**/*.py")) if path.is_dir() else [path.with_suffix(".py")]
            text = "\n".join(file.read_text(encoding="utf-8") for file in files)
            pattern = rf"^\s*(?:from|import) {re.escape(package)}\.(\w+)"
            used = {other for other in re.findall(pattern, text, re.MULTILINE) if other in names}
            here = TWINS if package == "flax_vae" and name in mirrored else name
            used = {TWINS if package == "flax_vae" and other in mirrored else other for other in used}
            edges[here] = edges.pop(here, set()) | used  # at the place of the last
        result[package] = {name: used - {name} for name, used in edges.items() if not name.startswith("__")}
    return result


def _direct(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Returns the edges without those that follow from others."""
    below: dict[str, set[str]] = {}
    for name in edges:  # each after those that it imports
        below[name] = edges[name].union(*(below[other] for other in edges[name]))
    return {name: used - set().union(*(below[other] for other in used)) for name, used in edges.items()}


def picture(root: Path) -> str:
    """Returns an SVG element: a column for each package, the ground floor at the bottom, and arcs for imports.

    An import that follows from others is left out.  Colours are those of the text around the picture.
    """
    graphs = {package: _direct(edges) for package, edges in imports(root).items()}
    floors = max(map(len, graphs.values()))
    height = floors * _HEIGHT + 96
    width = len(graphs) * (_WIDTH + _GAP) + 20
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" xmlns="http://www.w3.org/2000/svg" style="{_STYLE}" '
        'fill="none" stroke="currentColor"><title>Rooms of the packages and what they import</title>'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="currentColor" stroke="none"/></marker></defs>'
    ]
    ground = height - 60
    for column, (package, edges) in enumerate(graphs.items()):
        left = column * (_WIDTH + _GAP) + _GAP - 20
        middle = {name: ground - floor * _HEIGHT for floor, name in enumerate(edges)}
        parts.append(_text(left + _WIDTH / 2, ground - len(edges) * _HEIGHT, package, "bold"))
        for name, y in middle.items():
            parts.append(
                f'<rect x="{left}" y="{y - _BOX / 2}" width="{_WIDTH}" height="{_BOX}" rx="4" stroke-opacity=".5" '
                f'fill="currentColor" fill-opacity="{".16" if name == TWINS else ".05"}"/>'
                + _text(left + _WIDTH / 2, y, name)
            )
            for other in sorted(edges[name]):
                reach = 16 + 1.1 * abs(middle[other] - y) ** 0.8
                bend, end = f"{left - reach:.0f}", middle[other] - 4
                parts.append(
                    f'<path d="M{left} {y + 4}C{bend} {y + 4} {bend} {end} {left - 1} {end}" stroke-opacity=".45" '
                    'marker-end="url(#tip)"/>'
                )
    for column in (1, 2):  # packages import those to their left
        right = column * (_WIDTH + _GAP) + _GAP - 24
        parts.append(
            f'<path d="M{right} {height - 20}H{right - _GAP + 12}" stroke-width="2" marker-end="url(#tip)"/>'
            + _text(right - _GAP / 2 + 4, height - 34, "imports")
        )
    for column, name in enumerate(graphs):
        parts.append(_text(column * (_WIDTH + _GAP) + _GAP - 20 + _WIDTH / 2, height - 20, f"{name}", "bold"))
    return "".join([*parts, "</svg>"])


def _text(x: float, y: float, text: str, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle" font-weight="{weight}" fill="currentColor" '
        f'stroke="none">{escape(text)}</text>'
    )
