"""The run directory: `config.json`, `metrics.jsonl`, `samples/`, `checkpoints/` and, at the end, `export/`.

`config.json` is written first.  A directory that was left at any later moment, or that has lost its `config.json`, is
resumed: the checkpoints hold the settings too.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from flax_vae.convert.errors import FileError
from flax_vae.convert.files import loads_object, new_file, read_object, read_verified
from flax_vae.train.config import TrainConfig, config_differences
from flax_vae.train.data import digest_of_listing, find_changes
from flax_vae.train.errors import RunError

CONFIG = "config.json"
DATA = "data.json"
HISTORY = "history"  # in config.json, beside the fields of `TrainConfig`: what was changed after which step
_OURS = (CONFIG, DATA, "metrics.jsonl", "samples", "checkpoints", "export", "report.html", "tensorboard")
# What a run begins with.  Changed afterwards, the record would name an origin that the weights do not have.
_ORIGIN = ("start_from", "raw_weights", "graft", "identity_init")
# What changes nothing that a complete run has computed.  The content of the data is compared by itself.
_HOW = frozenset(
    {
        *("steps", "parallel", "zero", "devices_per_image", "remat", "log_every", "eval_every", "save_every", "keep"),
        *("max_skipped", "tensorboard", "data.folder", "data.held_out"),
        *("data.bad_files", "data.max_bad_fraction", "data.max_bad_count"),
    }
)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/")  # gs://bucket/run, of which a Path keeps one slash


class RunDirectory:
    """Where everything of one run lies.

    Attributes:
      path: the directory itself.
      metrics: one JSON object per line.
      samples: PNG grids.
      checkpoints: of the state.
      export: the model folder.
    """

    def __init__(self, path: Path):
        """Touches nothing.

        Raises:
          RunError: if it is an address, of which a folder of that name would be made here.
        """
        if _ADDRESS.match(path.as_posix()):
            raise RunError(f"{path} is an address, not a folder; mount the bucket and name a folder in it")
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self.export = path / "export"

    def sample(self, step: int) -> Path:
        """The picture of the held-out photograph after that many updates."""
        return self.samples / f"step_{step:07}.png"

    @property
    def steps(self) -> list[int]:
        """Numbers of the checkpoints, damaged or not, in ascending order.  A run without any has learned nothing."""
        if not self.checkpoints.is_dir():
            return []
        from flax_vae.train.run.recovery import find_steps  # loads JAX, which reading a configuration does not need

        return find_steps(self.checkpoints)

    def stored_config(self) -> TrainConfig | None:
        """Returns the settings of the run in this directory, or None where none was begun.

        Where `config.json` is missing they are those of the newest checkpoint that is as it was written.

        Raises:
          RunError: if `config.json` cannot be understood, or the directory holds something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; a run needs a directory of its own")
        file = self.path / CONFIG
        if file.is_file():
            try:
                return TrainConfig.from_dict(_without_history(read_object(file)))
            except (AttributeError, TypeError, ValueError) as error:
                fix = f"remove it, for {self.checkpoints} holds the settings too" if self.steps else "remove it"
                raise RunError(
                    f"{file} does not describe a training run ({error}); {fix}, or choose another workdir"
                ) from error
        for step in reversed(self.steps):
            with suppress(FileError, AttributeError, TypeError, ValueError):  # damaged, or not ours
                content = read_verified(self.checkpoints / str(step), "config/metadata")
                return TrainConfig.from_dict(loads_object(content))
        entries = [entry.name for entry in self.path.iterdir()] if self.path.is_dir() else []
        ours = tuple(f"{name}." for name in _OURS)
        strangers = sorted(name for name in entries if name not in _OURS and not name.startswith((".", *ours)))
        if strangers:
            raise RunError(
                f"{self.path} is not empty ({', '.join(strangers[:3])}) and holds no {CONFIG}; choose another workdir"
            )
        return None

    def fixed(self, config: TrainConfig) -> TrainConfig:
        """Returns the settings with what a run keeps from its beginning, where they do not say otherwise.

        That is the held-out image, by name, whatever images are added; and the name of the weights that it began with,
        where the same file is now named in another way.
        """
        stored = self.stored_config()
        if stored is None or not self.steps:
            return config
        data, start = config.data, config.start_from
        if data.held_out is None:
            data = replace(data, held_out=stored.data.held_out)
        if start and stored.start_from and os.path.realpath(start) == os.path.realpath(stored.start_from):
            start = stored.start_from
        return replace(config, data=data, start_from=start)

    def check(self, config: TrainConfig) -> list[str]:
        """Compares settings with those of the run that was begun here; writes nothing.

        Returns:
          `name: before -> after` for each setting that differs.

        Raises:
          RunError: if that run is of another architecture; if it has checkpoints and began with other weights; if it is
            complete and would not learn from what is changed.
        """
        stored = self.stored_config()
        if stored is None:
            return []
        changes = config_differences(stored, config)
        architecture = [line.removeprefix("model.") for line in changes if line.startswith("model.")]
        if architecture:
            raise RunError(
                f"{self.path} holds a run of another architecture ({', '.join(architecture)}); choose another workdir"
            )
        steps = self.steps
        origin = [line for line in changes if line.partition(":")[0] in _ORIGIN]
        if steps and origin:
            raise RunError(
                f"{self.path} holds a run of {steps[-1]} steps with another beginning ({', '.join(origin)}); choose "
                "another workdir to begin anew, or leave the setting as it was to go on"
            )
        learned = [line for line in changes if line.partition(":")[0] not in _HOW]
        if steps and steps[-1] == config.steps and learned:
            raise RunError(
                f"{self.path} holds a complete run, which learns nothing more ({', '.join(learned)}); ask for more "
                f"than steps={config.steps}, or choose another workdir"
            )
        return changes

    def check_data(self, config: TrainConfig, listing: Mapping[str, str], *, accept: bool = False) -> list[str]:
        """Compares the images with those that the run was begun with; writes nothing.

        Args:
          config: Settings, as `fixed` returns them.
          listing: Content of the images, as `flax_vae.train.data.data_listing` makes it, in the way of
            `stored_listing`.
          accept: Whether to go on with other images.

        Returns:
          One phrase for each difference.

        Raises:
          RunError: If the run has checkpoints and the images, or the one that is held out, are not what they were,
            unless `accept`; and if it is complete.
        """
        stored, before, steps = self.stored_config(), self.stored_listing(), self.steps
        if stored is None or not steps:
            return []
        if before is None:  # deleted, or older than these files
            return [f"data: not known before, for there is no {DATA}"]
        changes = [f"data: {phrase}" for phrase in find_changes(before, listing)]
        held_out = stored.data.held_out, config.data.held_out
        known = held_out[0] in (None, held_out[1])
        found = changes if known else [*changes, f"data.held_out: {held_out[0]!r} -> {held_out[1]!r}"]
        if found and steps[-1] == config.steps:
            raise RunError(
                f"{self.path} holds a complete run of other data ({', '.join(found)}); choose another workdir"
            )
        if found and not accept:
            raise RunError(
                f"{self.path} holds a run of other data ({', '.join(found)}); put back what it began with, choose "
                "another workdir, or go on with the changed data by --accept-changed-data"
            )
        return changes

    def stored_listing(self) -> dict[str, str] | None:
        """Returns the content of the images that the run was begun with, or None where it is not known.

        Raises:
          RunError: If `data.json` is damaged.
        """
        file = self.path / DATA
        try:
            content = json.loads(file.read_bytes())
            if content["sha256"] != digest_of_listing(content["images"]):
                raise ValueError("its SHA-256 is another")
            return content["images"]
        except FileNotFoundError:
            return None
        except (AttributeError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
            raise RunError(
                f"{file} is damaged ({error or type(error).__name__}); put back a copy, or remove it to take the data "
                "as they are now"
            ) from error

    def begin(self, config: TrainConfig, listing: Mapping[str, str] | None = None, changes: Sequence[str] = ()) -> None:
        """Makes the directory and writes what is not there yet: `config.json` first, then `data.json`.

        Args:
          config: Settings from now on.
          listing: Content of the images from now on.
          changes: What differs from before; it is recorded if there is a checkpoint, from whose step on it holds.

        Raises:
          RunError: if that is impossible.
        """
        history = self._history()
        if self.steps and changes:
            history.append({"after_step": self.steps[-1], "changed": list(changes)})
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._write(CONFIG, config.to_dict() | ({HISTORY: history} if history else {}), indent=2)
            if listing is not None:
                self._write(DATA, {"sha256": digest_of_listing(listing), "images": dict(listing)}, indent=0)
            self.samples.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path} cannot be written ({error}); choose another workdir") from error

    def _history(self) -> list[dict[str, Any]]:
        with suppress(AttributeError, OSError, TypeError, ValueError):
            return list(json.loads((self.path / CONFIG).read_bytes()).get(HISTORY, []))
        return []

    def _write(self, name: str, content: dict[str, Any], *, indent: int) -> None:
        text = json.dumps(content, indent=indent) + "\n"
        with suppress(OSError, ValueError):
            if (self.path / name).read_text(encoding="utf-8") == text:
                return
        with new_file(self.path / name, force=True) as file:
            file.write_text(text, encoding="utf-8")


def _without_history(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != HISTORY}
