"""The run directory: `config.json`, `metrics.jsonl`, `samples/`, `checkpoints/` and, at the end, `export/`."""

import json
import re
from pathlib import Path

from convert.files import new_file
from train.config import TrainConfig, differences
from train.errors import RunError

CONFIG = "config.json"
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

    def stored_config(self) -> TrainConfig | None:
        """What the run in this directory is, or None where none was begun.

        Raises:
          RunError: if `config.json` cannot be understood, or the directory holds something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; a run needs a directory of its own")
        file = self.path / CONFIG
        if file.is_file():
            try:
                return TrainConfig.from_dict(json.loads(file.read_text(encoding="utf-8")))
            except (AttributeError, TypeError, ValueError) as error:
                raise RunError(f"{file} does not describe a training run ({error}); choose another workdir") from error
        strangers = [entry.name for entry in self.path.iterdir()] if self.path.is_dir() else []
        strangers = sorted(name for name in strangers if not name.startswith("."))
        if strangers:
            raise RunError(
                f"{self.path} is not empty ({', '.join(strangers[:3])}) and holds no {CONFIG}; choose another workdir"
            )
        return None

    def check(self, config: TrainConfig) -> list[str]:
        """Returns a sentence on what differs from the run that was begun here, or nothing; writes nothing.

        Raises:
          RunError: if that run is of another architecture.
        """
        stored = self.stored_config()
        if stored is None:
            return []
        changes = differences(stored, config)
        architecture = [line.removeprefix("model.") for line in changes if line.startswith("model.")]
        if architecture:
            raise RunError(
                f"{self.path} holds a run of another architecture ({', '.join(architecture)}); choose another workdir"
            )
        return [f"changed since this run began: {', '.join(changes)}"] if changes else []

    def begin(self, config: TrainConfig) -> None:
        """Makes the directory and writes `config.json`.

        Raises:
          RunError: if that is impossible.
        """
        try:
            self.samples.mkdir(parents=True, exist_ok=True)
            with new_file(self.path / CONFIG, force=True) as file:
                file.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise RunError(f"{self.path} cannot be written ({error}); choose another workdir") from error
