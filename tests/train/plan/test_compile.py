"""What a run would take elsewhere: the search for what fits, the step compiled for TPUs that are not here."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from flax_vae import AutoEncoder, init_params
from flax_vae.convert import PRESETS
from flax_vae.ops import upsampling
from flax_vae.train.cli.main import main as train
from flax_vae.train.cli.plan import main
from flax_vae.train.config import TrainConfig
from flax_vae.train.config.yaml_text import parse_yaml
from flax_vae.train.devices.chips import CHIPS
from flax_vae.train.plan import compile as compile_
from flax_vae.train.plan.compile import Memory, Plan, bytes_needed, find_fitting, largest_batch, plan
from flax_vae.train.plan.table import HEAD, rows
from flax_vae.train.plan.topologies import Target, local, topology
from flax_vae.train.run import RunDirectory

ROOT = Path(__file__).parents[3]
GIB = 2**30
needs_compiler = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is missing")


# Fitting


def fake(need):
    """Plans of a device of 10 GiB, that note the numbers they were asked for."""
    asked, target = [], Target("fake", (), "TPU v5e", 10 * GIB)

    def plan_of(number):
        asked.append(number)
        total = int(need(number) * GIB)
        return Plan("", target, None, Memory(total), total <= target.memory, 1.0, None, None)

    return plan_of, asked


@pytest.mark.parametrize(
    ("need", "number"),
    [
        (lambda n: 1 + 0.1 * n, 90),
        (lambda n: 1 + 0.1 * n**1.3, 31),  # grows faster than the first two numbers say
        (lambda n: 1 + n**0.5, 81),  # more slowly
        (lambda n: 5 + 4 * n, 1),
    ],
    ids=["a line", "faster", "more slowly", "one"],
)
def test_the_largest_number_that_fits_is_found_in_few_steps(need, number):
    plan_of, asked = fake(need)
    found = largest_batch(plan_of)
    assert found is not None and found.memory.total == int(need(number) * GIB) <= 10 * GIB < need(number + 1) * GIB
    assert len(asked) == len(set(asked)) <= 12


@pytest.fixture
def tried(monkeypatch):
    """Steps that need 48 GiB, or 24 with full rematerialisation, divided by the parts of the batch."""
    tried = []

    def fake_plan(config, target, **_):
        tried.append((config.remat, config.optim.accumulate))
        total = (24 if config.remat == "blocks" else 48) * GIB // config.optim.accumulate
        return Plan("", target, config, Memory(total), total <= target.memory, 1.0, None, None)

    monkeypatch.setattr(compile_, "plan", fake_plan)
    return tried


def test_a_batch_that_does_not_fit_is_computed_in_more_parts(small, tried):
    config = dataclasses.replace(small, batch_size=24)
    *_, found = find_fitting(config, Target("fake", (None, None), "TPU v5e", 5 * GIB), batch=False)
    assert found.fits and found.config.batch_size == 24
    assert tried == [("none", 1), ("attention", 1), ("blocks", 1), ("blocks", 2), ("blocks", 4), ("blocks", 12)]


def test_a_run_is_made_to_fit_and_keeps_its_settings_when_it_is_resumed(tried, tmp_path, monkeypatch, capsys):
    begin = ["--fit", "--dry-run", "--batch-size", "8", "--workdir", str(tmp_path / "run")]
    monkeypatch.setattr("flax_vae.ops.cache_for_command", lambda _: pytest.fail("a dry run writes nothing"))
    monkeypatch.setattr("flax_vae.train.plan.local", lambda: Target("fake", (None,), "TPU v5e", 7 * GIB))
    assert train([*begin]) == 0
    shown = capsys.readouterr()
    assert shown.err == "remat blocks, accumulate 4: 6.0 of 7.0 GiB\n"
    config = TrainConfig.from_dict(parse_yaml(shown.out))
    assert (config.remat, config.optim.accumulate, config.batch_size) == ("blocks", 4, 8)

    monkeypatch.setattr("flax_vae.train.plan.local", lambda: Target("fake", (None,), "TPU v5e", GIB))
    assert train(begin) == 1
    assert "a step needs 3.0 GiB with remat='blocks' and accumulate=8, and a device has 1.0" in capsys.readouterr().err

    RunDirectory(tmp_path / "run").begin(config)
    tried.clear()
    assert train(begin) == 0 and not tried
    assert "\nremat: blocks\n" in capsys.readouterr().out

    several = ["--coordinator", "localhost:1", "--processes", "2", "--process", "0"]
    assert train(["--fit", "--workdir", str(tmp_path / "other"), *several]) == 1
    assert "pass them to all processes" in capsys.readouterr().err


def test_nothing_fits():
    assert largest_batch(fake(lambda n: 11 * n)[0]) is None


@pytest.mark.parametrize(
    ("message", "total"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (20.72G) exceeds "
         "available HBM (15.75G).", int(20.72 * GIB)),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.50G of 15.75G hbm. Exceeded hbm capacity "
         "by 2.75G.", int(18.5 * GIB)),
        ("INVALID_ARGUMENT: 20.72G of something else", None),
    ],
)  # fmt: skip
def test_what_a_program_that_does_not_fit_would_need_is_read_from_the_error(message, total):
    assert bytes_needed(message) == total


# On this machine


@pytest.fixture(scope="module")
def here(small):
    return plan(dataclasses.replace(small, batch_size=4), local(), name="small")


def test_the_devices_here_are_planned_for_and_what_nobody_knows_is_left_open(here):
    assert here.memory.arguments > 0 and here.memory.temporaries > 0
    assert here.target.memory is here.fits is None
    assert here.operations > 0
    if jax.default_backend() == "cpu":
        assert here.seconds is here.images_per_second is here.dollars_per_million is None


def test_the_roofline_is_the_longer_of_computing_and_moving(here):
    chip = CHIPS["TPU v5e"]
    there = dataclasses.replace(here, target=Target("v5e:1x1", here.target.devices[:1], "TPU v5e", 16 * GIB))
    computing = dataclasses.replace(there, operations=chip.flops, traffic=chip.bandwidth / 2, dollars=3.6)
    moving = dataclasses.replace(computing, traffic=4 * chip.bandwidth)
    assert (computing.seconds, moving.seconds) == (1.0, 4.0)
    assert moving.images_per_second == 1.0  # four images
    assert moving.dollars_per_million == pytest.approx(1e6 / 1.0 * 3.6 / 3600)


def test_the_table_has_a_line_for_each_plan(here):
    head, line = rows([here])
    assert head.split()[:3] == ["devices", "model", "how"] and " small " in line and line.count("/ ?") == 1
    assert len(list(rows([here, here], markdown=True))) == 4


def test_fitting_needs_to_know_the_memory_and_wrong_slices_are_refused(capsys):
    assert main(["--fit", "--preset", "tiny"]) == 1
    assert "run without --fit" in capsys.readouterr().err
    assert main(["--topology", "v5e"]) == 1
    assert "topology='v5e' must be" in capsys.readouterr().err
    assert main(["--optim.b1", "2"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


# For TPUs that are elsewhere


PLANNED = {
    "flux1": ["--preset", "flux1-finetune"],  # 256 px, bfloat16, a discriminator and LPIPS
    "seed-flux": ["--preset", "seed-flux", "--crop-size", "128", "--dtype", "bfloat16", "--batch-size", "16",
                  "--parallel", "mesh", "--remat", "blocks"],
}  # fmt: skip


@pytest.mark.tpu
@needs_compiler
@pytest.mark.parametrize(("slice_", "hosts"), [("v5e:2x2", 1), ("v5e:4x4", 4)])
@pytest.mark.parametrize("preset", PLANNED)
def test_the_training_step_compiles_for_one_host_and_for_four_and_its_memory_fits(preset, slice_, hosts):
    command = [
        sys.executable,
        "-m",
        "flax_vae.train.cli.main",
        "plan",
        *PLANNED[preset],
        "--topology",
        slice_,
        "--markdown",
    ]
    # A quarter of the time, for programs that need no less memory.
    environment = os.environ | {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr  # 1 if it did not fit
    (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"| {slice_} "))
    row = dict(zip(HEAD, (cell.strip() for cell in line.strip("|").split("|")), strict=True))
    assert row["hosts"] == str(hosts)
    used, has = (float(number) for number in row["GiB of"].split("/"))
    assert 1 < used < 15.75 and has == 16  # the compiler keeps a quarter of a GiB
    assert float(row["work"]) > 0.2 and float(row["TFLOP"]) > 0.1 and float(row["img/s <="]) > 1


@pytest.mark.tpu
@needs_compiler
@pytest.mark.parametrize("slice_", ["v5e:2x2", "v6e:2x2"])
def test_the_compiled_decoder_has_less_arithmetic_than_the_one_as_written(monkeypatch, slice_):
    chip = SingleDeviceSharding(topology(slice_).devices[0])
    model = AutoEncoder(PRESETS["flux1"], dtype=jnp.bfloat16)
    params = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    inputs = {"params": {"decoder": params["decoder"]}}, jax.ShapeDtypeStruct((8, 8, 8, 16), jnp.float32)
    inputs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=chip), inputs)

    def operations():
        decode = jax.jit(lambda variables, z: model.apply(variables, z, method="decode"))
        return decode.lower(*inputs).compile().cost_analysis()["flops"]

    before = jax.config.jax_exec_time_optimization_effort  # type: ignore[attr-defined]
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    try:
        folded = operations()
        monkeypatch.delitem(upsampling.WAYS, "tpu")
        assert folded <= 0.86 * operations()
    finally:
        jax.config.update("jax_exec_time_optimization_effort", before)
