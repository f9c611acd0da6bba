"""One of two processes that compare their inputs in several cases.

`python -m tests.train.devices.members COORDINATOR INDEX DATA` prints one line of JSON for each case: its name, and
the error.
"""

import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from flax_vae.convert import FlaxVaeError
from flax_vae.train.config.schema import DataConfig, OptimConfig, TrainConfig
from flax_vae.train.data.listing import data_listing
from flax_vae.train.data.photographs import Photographs
from flax_vae.train.devices import agreeing as module
from flax_vae.train.devices.agreeing import agreement, facts_of_run, facts_of_start, gather_values, require_same_state
from flax_vae.train.devices.processes import join_processes
from flax_vae.train.errors import DataError, TrainError
from tests.train.conftest import SMALL

CONFIG = TrainConfig(model=SMALL, data=DataConfig(crop_size=16, bad_files="skip", max_bad_fraction=0.9))

# Settings of process 1, by case.
CONFIGS = {
    "learning rate": replace(CONFIG, optim=OptimConfig(learning_rate=0.002)),
    "save_every": replace(CONFIG, save_every=3),
    "parallel": replace(CONFIG, parallel="mesh"),
    "two settings": replace(CONFIG, seed=1, steps=7),
}
FOLDERS = ("other photographs", "fewer photographs", "damaged photograph", "another path")


def start(config: TrainConfig, folder: Path, constants: object = None) -> None:
    with agreement() as facts:
        config = replace(config, data=replace(config.data, folder=str(folder)))
        facts |= facts_of_run(config, data_listing(Photographs(config.data)), {} if constants is None else constants)


def start_with(state: object) -> None:
    with agreement() as facts:
        facts |= facts_of_start(state)


def fail(error: Exception | None) -> None:
    with agreement():
        if error is not None:
            raise error


def cases(other: bool, data: Path):
    yield "the same", lambda: start(CONFIG, data / "same")
    for name, config in CONFIGS.items():
        yield name, lambda config=config: start(config if other else CONFIG, data / "same")
    for name in FOLDERS:
        yield name, lambda name=name: start(CONFIG, data / (name if other else "same"))
    packages = {**dict.fromkeys(module._PACKAGES, "1.0"), **({"optax": "0.9"} if other else {})}
    with mock.patch("importlib.metadata.version", packages.get):
        yield "version", lambda: start(CONFIG, data / "same")
    constants = {"lpips": np.full(3, 2.0 if other else 1.0)}
    yield "constants", lambda: start(CONFIG, data / "same", constants)
    state = {"step": jnp.zeros(()), "params": {"kernel": jnp.ones(5).at[3].add(1e-6 if other else 0)}}
    yield "initial weights", lambda: start_with(state)
    yield "failure in one", lambda: fail(DataError("b.jpg is damaged") if other else None)
    yield "failure in the first", lambda: fail(None if other else TrainError("locked"))
    yield "failure in both", lambda: fail(TrainError(f"of {'1' if other else '0'}"))
    yield "defect in one", lambda: fail(ZeroDivisionError("x") if other else None)
    yield "state", lambda: require_same_state(state, 40)
    state["params"]["kernel"] = jnp.ones(5)
    yield "the same state", lambda: require_same_state(state, 41)
    yield "long values", lambda: gather_values("x" * (10_000 if other else 1))


def main(coordinator: str, index: int, data: Path) -> None:
    join_processes(coordinator, 2, index)
    module.WAIT_SECONDS = 30
    for name, case in cases(index == 1, data):
        message = ""
        with contextlib.suppress(ZeroDivisionError):
            try:
                case()
            except FlaxVaeError as error:
                message = str(error)
        print(json.dumps([name, message]), flush=True)
    values = gather_values({"from": index})
    print(json.dumps(["values", values]), flush=True)
    module.WAIT_SECONDS = 1
    if index == 0:
        try:
            gather_values("alone")
        except TrainError as error:
            print(json.dumps(["alone", str(error)]), flush=True)
    else:
        print(json.dumps(["alone", ""]), flush=True)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
