"""Generated parts of pages, as Markdown, from the code and the files of the repository."""

import contextlib
import dataclasses
import difflib
import importlib
import inspect
import io
import math
import os
import re
import tomllib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, get_type_hints
from unittest import mock

import griffe
import rooms

from flax_vae.convert.architecture import ALL_PRESETS, AutoEncoderParams
from flax_vae.convert.table import expand
from flax_vae.convert.table.layouts import FAMILIES, OURS
from flax_vae.train.cli.flags import SHORT_NAMES
from flax_vae.train.config import TrainConfig, recipe
from flax_vae.train.config.recipes import RECIPES, default
from flax_vae.train.config.schema import flatten_config

ROOT = Path(__file__).parents[2]

_COMMANDS = {
    "flax_vae.cli.main": ("flax-vae", ["", "encode", "decode", "reconstruct"]),
    "flax_vae.convert.cli.main": ("flax-vae-convert", ["", "inspect", "verify", "table"]),
    "flax_vae.train.cli.main": ("flax-vae-train", ["", "eval", "compare", "plan", "recipes"]),
}


def readme() -> str:
    """Returns the README, with links as seen from `docs/`."""
    return _from_root("README.md")


def changelog() -> str:
    """Returns the changelog, with links as seen from `docs/`."""
    return _from_root("CHANGELOG.md")


def _from_root(name: str) -> str:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"(\]\()(?![a-z]+:|#)(docs/)?", lambda link: link[1] + ("" if link[2] else "../"), text)


def extras() -> str:
    """Returns a table of the extras that users need, with the comments of `pyproject.toml`."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    groups = tomllib.loads(text)["project"]["optional-dependencies"]
    reasons = dict(re.findall(r"^(\w+) = \[[^\n]*\]  # (.+)$", text, re.MULTILINE))
    rows = [
        (f"`{name}`", ", ".join(f"`{package}`" for package in packages), reasons.get(name, ""))
        for name, packages in groups.items()
        if name not in ("test", "lint", "docs", "peers")
    ]
    return _table(("extra", "installs", "for"), rows)


def settings() -> str:
    """Returns a table of all settings of each section of `TrainConfig`."""
    sections = {"": TrainConfig} | {
        name: hint for name, hint in get_type_hints(TrainConfig).items() if dataclasses.is_dataclass(hint)
    }
    return "\n\n".join(_settings_of(name, section, sections) for name, section in sections.items() if name != "model")


def _settings_of(name: str, section: Any, sections: Collection[str]) -> str:
    prefix = f"{name}." if name else ""
    told = _attributes(section)
    rows = []
    for field in dataclasses.fields(section):
        full = f"{prefix}{field.name}"
        if field.name in sections or full == "model":  # sections of their own
            continue
        long = f"--{full.replace('_', '-')}"
        short = SHORT_NAMES.get(full)
        flags = f"`{long}`" if short in (None, long) else f"`{short}`, `{long}`"
        rows.append((flags, _value(field.default), told[field.name]))
    title = f"## {name.capitalize()}" if name else "## Training"
    about = (inspect.getdoc(section) or "").partition("\n")[0] if name else "The settings that are in no section."
    return f"{title}\n\n{about}\n\n{_table(('flag', 'default', 'meaning'), rows)}"


def _attributes(section: type) -> dict[str, str]:
    """Returns the description of each field, as mkdocstrings reads it from the docstring."""
    parts = griffe.Docstring(inspect.getdoc(section) or "").parse("google")
    fields = [field for part in parts if part.kind is griffe.DocstringSectionKind.attributes for field in part.value]
    return {field.name: " ".join(field.description.split()) for field in fields}


def recipes() -> str:
    """Returns what each recipe changes, as a section with its docstring's command and a table."""
    sections = []
    for name in RECIPES:
        config = recipe(name, "WEIGHTS")
        before, after = (flatten_config(c.to_dict() | {"model": {}}) for c in (default(config.model), config))
        ours = {key for key, value in after.items() if value != before[key]} - {"start_from"}
        rows = [(f"`{key}`", _value(before[key]), _value(after[key])) for key in after if key in ours]
        sections.append(f"### `{name}`\n\n{_table(('setting', 'default', name), rows)}")
    return "\n\n".join(sections)


def presets() -> str:
    """Returns a table of the presets and the numbers of their architectures."""
    rows = []
    for name, params in ALL_PRESETS.items():
        large = isinstance(params, AutoEncoderParams)
        shapes = [row.shape for row in expand(params, "flux")]
        widths = ", ".join(str(params.ch * factor) for factor in params.ch_mult) if large else "64"
        count = sum(map(math.prod, shapes)) / 1e6
        rows.append((f"`{name}`", widths, params.factor, params.latent_channels, len(shapes), f"{count:.1f}"))
    return _table(("preset", "widths", "factor", "latent channels", "tensors", "million parameters"), rows)


def weight_table() -> str:
    """Returns the tables of `convert/table/layouts.py`: modules, what is inside them, and operations."""
    layouts = list(FAMILIES.values())
    head = ("module", "ours", *(layout.name for layout in layouts if layout.name != "flax"))
    shown = [layout for layout in layouts if layout.name != "flax"]
    places = [(name, _code(OURS[name]), *(_code(layout.places[name]) for layout in shown)) for name in OURS]
    parts = [("", _code(name), *(_code(layout.parts[name]) for layout in shown)) for name in shown[0].parts]
    kinds = [(kind, *(f"`{layout.ops[kind].name}`" for layout in shown)) for kind in shown[0].ops]
    return "\n\n".join(
        (
            "## Modules",
            _table(head, places),
            "## Inside a block",
            _table(("", *head[1:]), parts),
            "## Operations",
            _table(("array", *head[2:]), kinds),
        )
    )


def _code(name: str | None) -> str:
    return f"`{name}`" if name else "-"


def twins() -> str:
    """Returns the differences between the files of `torch_ref` and `flax_vae` that have one name."""
    here, there = ({path.stem for path in (ROOT / name).glob("*.py")} for name in ("torch_ref", "flax_vae"))
    parts = []
    for name in sorted(here & there - {"__init__"}):
        texts = [(ROOT / root / f"{name}.py").read_text(encoding="utf-8").splitlines() for root in _TWINS]
        lines = list(difflib.unified_diff(*texts, *(f"{root}/{name}.py" for root in _TWINS), n=2, lineterm=""))
        removed, added = (sum(line.startswith(sign) for line in lines[2:]) for sign in "-+")
        told = f"{len(texts[0])} and {len(texts[1])} lines, of which {removed} and {added} differ."
        parts.append(f"## {name}\n\n{told}\n\n````diff\n" + "\n".join(lines) + "\n````")
    return "\n\n".join(parts)


_TWINS = ("torch_ref", "flax_vae")


def commands() -> str:
    """Returns what `--help` prints for each command."""
    parts = []
    for module, (prog, subcommands) in _COMMANDS.items():
        main = importlib.import_module(module).main
        for subcommand in subcommands:
            title = f"{prog} {subcommand}".strip()
            printed = io.StringIO()
            wide = mock.patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"})
            with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit), wide:
                main([*subcommand.split(), "--help"])
            parts.append(f"## {title}\n\n```text\n{printed.getvalue().strip()}\n```")
    return "\n\n".join(parts)


def rooms_picture() -> str:
    """Returns the rooms of the packages and their imports as one picture."""
    return rooms.picture(ROOT)


def rooms_table() -> str:
    """Returns a table of the rooms with the first lines of their docstrings."""
    return "\n\n".join(
        f"### `{package}`\n\n" + _table(("room", "holds"), rows) for package, rows in rooms.descriptions(ROOT).items()
    )


def _value(value: Any) -> str:
    if value is dataclasses.MISSING:
        return ""
    return "none" if value is None else f"`{value}`"


def _table(head: tuple[object, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
