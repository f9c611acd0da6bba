"""The benchmark command, end to end on its smallest row, and what it computes from its measurements."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from flax_vae import Encoder
from flax_vae.convert import PRESETS
from tests.benchmarks import attention_memory
from tests.benchmarks.flops import decode_flops, encode_flops
from tests.benchmarks.machine import installed
from tests.benchmarks.rows import CPU_ROWS, DIFFUSERS, EXTRAS, GPU_ROWS, REF, Row, chosen, matrix_bytes, peers_of
from tests.benchmarks.table import render
from tests.benchmarks.turns import Outcome, Taken

ROOT = Path(__file__).parents[1]


@pytest.mark.cpu
def test_the_command_measures_a_row(tmp_path):
    """In bfloat16 as on a GPU, on whatever there is."""
    file = tmp_path / "measured.json"
    words = [sys.executable, "-m", "tests.benchmarks", "--rows", "encode-tiny", "--rounds", "1", "--json", str(file)]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("encode ")]
    work, preset, px, batch, seconds, peak, compiling, *_ = line.split()
    assert (work, preset, px, batch) == ("encode", "tiny", "32", "x2"), done.stderr
    assert float(seconds) > 0 and float(peak) > 0.1 and float(compiling) > 0
    (row,) = json.loads(file.read_text())["rows"]
    ours = row["contenders"]["ours"]
    assert row["name"] == "encode-tiny-32-b2" and ours["median"] == pytest.approx(float(seconds), abs=1e-3)
    assert ours["traffic"] > 0 and set(row["contenders"]) >= ({"torch SDPA"} if installed("torch") else set())


def test_an_unknown_row_is_refused():
    with pytest.raises(ValueError, match="nothing-like-it"):
        chosen(CPU_ROWS, ["nothing-like-it"])
    with pytest.raises(ValueError, match="--rows 'decode-flux2' is for a GPU, and JAX computes on a CPU here"):
        chosen(CPU_ROWS, ["decode-flux2"], GPU_ROWS)


def test_rows_are_chosen_by_glob_or_by_a_piece_of_the_name():
    listed, extras = chosen(CPU_ROWS, [])
    assert listed == [row for row in CPU_ROWS if row.listed] and extras == list(EXTRAS)
    assert {row.name for row in chosen(CPU_ROWS, ["training-*"])[0]} >= {"training-seed-128", "training-flux1-128"}
    assert chosen(CPU_ROWS, ["ceil", "seed-64"]) == ([Row("forward", "seed", 64, rounds=5, calls=3)], ["ceilings"])
    for rows in (CPU_ROWS, GPU_ROWS):
        assert len({row.name for row in rows}) == len(rows)


@pytest.mark.torch
def test_a_peer_that_cannot_do_a_row_is_left_out_with_the_reason():
    assert matrix_bytes(Row("forward", "seed", 256)) == 4 * 256**4
    found, notes = peers_of(Row("forward", "seed", 256, peers=(REF, DIFFUSERS)))
    assert found == [] and len(notes) == 2
    assert "17 GB" in notes[0]


@pytest.mark.torch
@pytest.mark.parametrize("preset", ["tiny", "seed", "flux1", "sd1", "kl-f16", "flux2-small-decoder"])
def test_operations_are_those_that_torch_counts(preset):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import torch_ref

    row = Row("forward", preset, 64)
    batch, height, width, channels = row.latent_shape
    with torch.device("meta"):
        model = torch_ref.AutoEncoder(row.record)
        images, latents = torch.empty(1, 3, row.px, row.px), torch.empty(batch, channels, height, width)
    for count, call in (
        (encode_flops, lambda: model.encode(images, sample=False)),
        (decode_flops, lambda: model.decode(latents)),
    ):
        with FlopCounterMode(display=False) as counter:
            call()
        assert counter.get_total_flops() == count(row.record, row.px)


def test_operations_are_about_those_that_xla_counts():
    # XLA leaves out what padding multiplies, and counts the normalisations, which this count leaves out
    encoder, images = Encoder(PRESETS["tiny"]), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(encoder.init, jax.random.key(0), images)
    cost = jax.jit(encoder.apply).lower(params, images).cost_analysis()
    assert cost["flops"] == pytest.approx(encode_flops(PRESETS["tiny"], 64), rel=0.1)


def test_the_exponent_of_a_power_law_is_found():
    sizes = attention_memory.POSITIONS
    for power in (0.5, 1.0, 2.0):
        assert attention_memory.exponent(sizes, [3e3 * n**power for n in sizes]) == pytest.approx(power)
    linear, quadratic = attention_memory.report(
        {"forward": {n: 300 * n for n in sizes}, "forward and backward": {n: 4 * n**2 for n in sizes}}
    )
    assert linear.endswith("(h w)^1.00, linear") and quadratic.endswith("(h w)^2.00, NOT linear")


def test_sizes_that_might_not_fit_are_not_tried(monkeypatch):
    monkeypatch.setattr(attention_memory, "free_bytes", lambda: 1e9)
    found = attention_memory.measure(lambda what, n: 4 * int(n) ** 2)
    assert [list(sizes) for sizes in found.values()] == [[4096]] * 2


def test_the_table_divides_by_the_fastest_peer():
    taken = {
        "ours": Taken([2.0, 1.0, 3.0], 10**9, 4.0),
        "torch_ref": Taken([8.0], 3 * 10**9),
        "torch SDPA": Taken([2.5, 3.0, 2.9], 2 * 10**9),
    }
    outcomes = [Outcome(Row("decode", "flux1", 256), taken, []), Outcome(Row("forward", "seed", 64), {}, [])]
    names, first, second = render(outcomes, dict.fromkeys(("matmul", "conv", "copy"), 1000.0), markdown=False)
    assert first.split()[3:6] == ["2.00", "1.00", "4.0"]
    assert first.split()[-7:] == ["8.00", "/", "3.00", "2.90", "/", "2.00", "1.45"]
    assert second.split() == ["forward", "seed", "64", *["-"] * 7]
    assert "diffusers" not in names
    assert len(render(outcomes, {}, markdown=True)) == 4
