"""The run directory: `config.json`, `metrics.jsonl`, `samples/`, `checkpoints/` and, at the end, `export/`.

`config.json` is written first.  A directory that was interrupted at any later moment, or that has lost its
`config.json`, is resumed: the checkpoints hold the settings too.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from flax_vae.convert.errors import AddressError, FileError
from flax_vae.convert.files import (
    address_of,
    as_path,
    exists_at,
    is_address,
    list_at,
    loads_object,
    read_at,
    read_object,
    read_verified,
    write_at,
)
from flax_vae.train.config import TrainConfig, ValidationConfig, config_differences
from flax_vae.train.data import digest_of_listing, find_changes
from flax_vae.train.errors import RunError

CONFIG = "config.json"
DATA = "data.json"
HISTORY = "history"  # key of config.json beside the fields of `TrainConfig`: which settings changed after which step
_OURS = (CONFIG, DATA, "metrics.jsonl", "samples", "checkpoints", "export", "report.html", "tensorboard", "wandb")
# Settings of the start of a run.  After a change, config.json would describe a start that the weights did not have.
_ORIGIN = ("start_from", "teacher", "raw_weights", "graft", "identity_init")
# Settings that do not change the result of a complete run.  The content of the data is compared separately.
_HOW = frozenset(
    {
        *("steps", "parallel", "zero", "devices_per_image", "remat", "log_every", "eval_every", "save_every", "keep"),
        *("max_skipped", "tensorboard", "wandb", "data.folder", "data.held_out"),
        *("data.bad_files", "data.max_bad_fraction", "data.max_bad_count"),
        *(f"validation.{setting.name}" for setting in fields(ValidationConfig) if setting.name != "patience"),
    }
)


class RunDirectory:
    """Paths of the files of one run.

    Attributes:
      path: The directory.
      metrics: File with one JSON object per line.
      samples: Folder of PNG grids.
      checkpoints: Folder of checkpoints.
      export: Exported model folder.
    """

    def __init__(self, path: Path):
        """Stores the paths; reads and writes nothing.

        Raises:
          RunError: If `path` is an address of another store than Google Cloud Storage.
          AddressError: If it is one there, and its client is not installed.
        """
        if is_address(path) and not address_of(path).startswith("gs://"):
            raise RunError(
                f"{address_of(path)} cannot hold a run: orbax saves in folders and gs:// buckets only; use one of "
                "them, or mount this one and name a folder in it",
                path=path,
            )
        path = as_path(path)
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self.export = path / "export"

    def sample(self, step: int) -> Path:
        """Returns the path of the image of the held-out photograph after `step` updates.

        Args:
          step: Number of updates.
        """
        return self.samples / f"step_{step:07}.png"

    @property
    def steps(self) -> list[int]:
        """Numbers of the checkpoints, damaged or not, in ascending order; a run without any has trained nothing."""
        if not exists_at(self.checkpoints):
            return []
        from flax_vae.train.run.recovery import find_steps  # imports JAX, which reading a configuration does not need

        return find_steps(self.checkpoints)

    def stored_config(self) -> TrainConfig | None:
        """Returns the settings of the run in this directory, or None if it holds none.

        If `config.json` is missing, returns those of the newest intact checkpoint.

        Raises:
          RunError: If `config.json` cannot be parsed, or the directory holds something else.
        """
        entries = [entry.name for entry in list_at(self.path)]
        if not entries and exists_at(self.path) and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; expected a directory for the run", path=self.path)
        file = self.path / CONFIG
        if CONFIG in entries:
            try:
                return TrainConfig.from_dict(_without_history(read_object(file)))
            except (AttributeError, TypeError, ValueError) as error:
                fix = f"remove it, for {self.checkpoints} holds the settings too" if self.steps else "remove it"
                raise RunError(
                    f"{file} does not describe a training run ({error}); {fix}, or choose another workdir", path=file
                ) from error
        for step in reversed(self.steps):
            with suppress(FileError, AttributeError, TypeError, ValueError):  # damaged, or of another program
                content = read_verified(self.checkpoints / str(step), "config/metadata")
                return TrainConfig.from_dict(loads_object(content))
        ours = tuple(f"{name}." for name in _OURS)
        strangers = sorted(name for name in entries if name not in _OURS and not name.startswith((".", *ours)))
        if strangers:
            raise RunError(
                f"{self.path} is not empty ({', '.join(strangers[:3])}) and holds no {CONFIG}; choose another workdir",
                path=self.path,
            )
        return None

    def fixed(self, config: TrainConfig) -> TrainConfig:
        """Returns the settings, completed by those that a run keeps from its start.

        These are the name of the held-out image, even if images are added, and the name of the initial weights, if the
        file is given under another name now.

        Args:
          config: Settings as given.
        """
        stored = self.stored_config()
        if stored is None or not self.steps:
            return config
        data = config.data
        if data.held_out is None:
            data = replace(data, held_out=stored.data.held_out)
        start, teacher = (
            was if now and was and os.path.realpath(now) == os.path.realpath(was) else now
            for now, was in ((config.start_from, stored.start_from), (config.teacher, stored.teacher))
        )
        return replace(config, data=data, start_from=start, teacher=teacher)

    def check(self, config: TrainConfig) -> list[str]:
        """Compares settings with those of the run in this directory; writes nothing.

        Args:
          config: Settings, as returned by `fixed`.

        Returns:
          `name: before -> after` for each setting that differs.

        Raises:
          RunError: If that run has another architecture; if it has checkpoints and other initial weights; if it is
            complete and the change would have no effect.
        """
        stored = self.stored_config()
        if stored is None:
            return []
        changes = config_differences(stored, config)
        architecture = [line.removeprefix("model.") for line in changes if line.startswith("model.")]
        if architecture:
            raise RunError(
                f"{self.path} holds a run of another architecture ({', '.join(architecture)}); choose another workdir",
                path=self.path,
            )
        steps = self.steps
        origin = [line for line in changes if line.partition(":")[0] in _ORIGIN]
        if steps and origin:
            raise RunError(
                f"{self.path} holds a run of {steps[-1]} steps with another start ({', '.join(origin)}); choose "
                "another workdir for a new run, or restore the setting to resume",
                path=self.path,
            )
        trained_on_all = stored.validation.data is not None and stored.data.held_out is None
        if steps and trained_on_all and config.validation.data is None and config.data.held_out is None:
            raise RunError(
                f"{self.path} holds a run without a held-out image, so it cannot resume without validation images; "
                f"name some with --validation, such as {stored.validation.data}",
                path=self.path,
            )
        changed = [line for line in changes if line.partition(":")[0] not in _HOW]
        if steps and steps[-1] == config.steps and changed:
            raise RunError(
                f"{self.path} holds a complete run, so changed settings have no effect ({', '.join(changed)}); set "
                f"more than steps={config.steps}, or choose another workdir"
            )
        return changes

    def check_data(self, config: TrainConfig, listing: Mapping[str, str], *, accept: bool = False) -> list[str]:
        """Compares the images with those of the run in this directory; writes nothing.

        Args:
          config: Settings, as returned by `fixed`.
          listing: Content of the images, as returned by `flax_vae.train.data.data_listing`, in the form of
            `stored_listing`.
          accept: Whether to resume with changed images.

        Returns:
          One phrase for each difference.

        Raises:
          RunError: If the run has checkpoints and the images, or the held-out one, have changed, unless `accept`; and
            if it is complete.
        """
        stored, before, steps = self.stored_config(), self.stored_listing(), self.steps
        if stored is None or not steps:
            return []
        if before is None:  # deleted, or the run is older than this file
            return [f"data: unknown, because {DATA} is missing"]
        changes = [f"data: {phrase}" for phrase in find_changes(before, listing)]
        held_out = stored.data.held_out, config.data.held_out
        known = held_out[0] in (None, held_out[1])
        found = changes if known else [*changes, f"data.held_out: {held_out[0]!r} -> {held_out[1]!r}"]
        if found and steps[-1] == config.steps:
            raise RunError(
                f"{self.path} holds a complete run of other data ({', '.join(found)}); choose another workdir",
                path=self.path,
            )
        if found and not accept:
            raise RunError(
                f"{self.path} holds a run of other data ({', '.join(found)}); restore the original data, choose "
                "another workdir, or resume with the changed data by --accept-changed-data",
                path=self.path,
            )
        return changes

    def stored_listing(self) -> dict[str, str] | None:
        """Returns the content of the images at the start of the run, or None if it is unknown.

        Raises:
          RunError: If `data.json` is damaged.
        """
        file = self.path / DATA
        try:
            content = json.loads(read_at(file))
            if content["sha256"] != digest_of_listing(content["images"]):
                raise ValueError("its SHA-256 does not match")
            return content["images"]
        except FileNotFoundError:
            return None
        except AddressError:  # says nothing about the file
            raise
        except (AttributeError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
            raise RunError(
                f"{file} is damaged ({error or type(error).__name__}); restore a copy, or remove it to accept the data "
                "as they are now",
                path=file,
            ) from error

    def begin(self, config: TrainConfig, listing: Mapping[str, str] | None = None, changes: Sequence[str] = ()) -> None:
        """Creates the directory and writes missing files: `config.json` first, then `data.json`.

        Args:
          config: New settings.
          listing: New content of the images.
          changes: Differences from before; recorded with the step of the latest checkpoint, if there is one.

        Raises:
          RunError: If the directory cannot be written.
        """
        history = self.history()
        if self.steps and changes:
            history.append({"after_step": self.steps[-1], "changed": list(changes)})
        try:
            if not is_address(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            self._write(CONFIG, config.to_dict() | ({HISTORY: history} if history else {}), indent=2)
            if listing is not None:
                self._write(DATA, {"sha256": digest_of_listing(listing), "images": dict(listing)}, indent=0)
            if not is_address(self.path):
                self.samples.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be written ({error}); choose another workdir", path=self.path
            ) from error

    def history(self) -> list[dict[str, Any]]:
        """Returns which settings were `changed`, and `after_step` how many; nothing if `config.json` does not tell."""
        try:
            return list(json.loads(read_at(self.path / CONFIG)).get(HISTORY, []))
        except AddressError:
            raise
        except (AttributeError, OSError, TypeError, ValueError):
            return []

    def _write(self, name: str, content: dict[str, Any], *, indent: int) -> None:
        text = (json.dumps(content, indent=indent) + "\n").encode()
        with suppress(OSError):
            if read_at(self.path / name) == text:
                return
        write_at(self.path / name, text)


def _without_history(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != HISTORY}
