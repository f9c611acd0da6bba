"""Tests of the loggers: wandb by a module with its calls, and what a run does when a logger fails."""

import sys
import types
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from flax_vae.train.errors import RunError
from flax_vae.train.report.loggers import Loggers, chosen_loggers, require_loggers


class Service:
    """Stands in for the module wandb; keeps the runs by their ids, as the service does."""

    Image = staticmethod(np.asarray)

    def __init__(self):
        self.started, self.logged, self.finished, self.last = [], {}, [], {}

    def Settings(self, **settings):  # noqa: N802 - wandb's name
        return settings

    def init(self, **asked):
        self.started.append(asked)
        service, name = self, asked["id"]

        class Run:
            url, offline = "https://example/run", False
            step = service.last.get(name, 0)  # where the earlier start ended

            def log(self, data, step):
                assert step >= self.step
                self.step = service.last[name] = step
                service.logged.setdefault(step, {}).update(data)

            def finish(self, exit_code):
                service.finished.append(exit_code)

        return Run()


@pytest.fixture
def service(monkeypatch):
    service = Service()
    module = types.ModuleType("wandb")
    for name in ("Image", "Settings", "init"):
        setattr(module, name, getattr(service, name))
    monkeypatch.setitem(sys.modules, "wandb", module)
    for variable in ("WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(variable, raising=False)
    return service


def test_a_resumed_run_goes_on_in_the_same_one_and_logs_no_step_twice(tmp_path, small, service):
    config, lines = replace(small, wandb=True), []
    picture = tmp_path / "sample.png"
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(pixels).save(picture)
    with pytest.raises(ZeroDivisionError), Loggers(chosen_loggers(config, tmp_path, 0), lines.append) as loggers:
        loggers.show(5, {"loss": 1.0, "psnr": float("inf")}, None)
        loggers.show(10, {"loss": 0.5}, picture)
        loggers.show(15, {"loss": 0.25}, None)
        _ = 1 / 0
    with Loggers(chosen_loggers(config, tmp_path, 10), lines.append) as loggers:
        for step in (15, 20):
            loggers.show(step, {"loss": 4 / step}, None)
    first, second = service.started
    assert first["id"] == second["id"] == (tmp_path / "wandb" / "id").read_text().strip()
    assert first["resume"] == "allow" and first["project"] == "flax-vae" and first["config"] == config.to_dict()
    assert service.finished == [1, 0]
    assert sorted(service.logged) == [5, 10, 15, 20] and service.logged[5] == {"loss": 1.0}
    np.testing.assert_array_equal(service.logged[10]["held_out"], pixels)
    assert lines == ["wandb: https://example/run"] * 2


def test_the_environment_names_the_project(tmp_path, small, service, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    with Loggers(chosen_loggers(replace(small, wandb=True), tmp_path, 0), print):
        pass
    assert service.started[0]["project"] is None  # wandb then takes its own variable


def test_a_logger_that_fails_is_reported_once_and_the_others_go_on():
    class Kept:
        place = "here"

        def __init__(self, fails=""):
            self.fails, self.calls = fails, []

        def scalars(self, step, scores):
            self.calls.append(step)
            if self.fails == "scalars":
                raise OSError("no space\nleft")

        def close(self, *, failed=False):
            self.calls.append("close")
            if self.fails == "close":
                raise ConnectionError

    def unreachable():
        raise ConnectionError("no network")

    kept, full, late, lines = Kept(), Kept("scalars"), Kept("close"), []
    makers = {"a": unreachable, "b": lambda: full, "c": lambda: late, "d": lambda: kept}
    with Loggers(makers, lines.append) as loggers:
        for step in (1, 2):
            loggers.show(step, {"loss": 1.0}, None)
    assert full.calls == [1] and late.calls == kept.calls == [1, 2, "close"]
    failures = [line for line in lines if "failed" in line]
    endings = [("a", "no network"), ("b", "no space left"), ("c", "ConnectionError")]
    assert failures == [f"{name} failed and is not used further; training goes on: {why}" for name, why in endings]


def test_a_missing_package_is_refused_before_the_run_begins(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RunError, match=r"pip install .*\[wandb\]"):
        require_loggers(replace(small, wandb=True))
    require_loggers(small)
