"""Tests of the memory that is estimated without compiling."""

from dataclasses import replace

import pytest

from flax_vae.train.devices import Parallel, make_parallel
from flax_vae.train.errors import TrainError
from flax_vae.train.loop import train
from flax_vae.train.plan import estimate, local
from flax_vae.train.plan.estimate import memory_rows, require_room


@pytest.fixture(scope="module")
def parallel():
    return make_parallel("pmap", devices=local().devices[:1])


def test_activations_follow_the_settings(small, parallel):
    small = replace(small, data=replace(small.data, crop_size=64), start_from="x")

    def activations(config):
        return memory_rows(config, parallel, {})["activations"]

    whole = activations(small)
    assert activations(replace(small, optim=replace(small.optim, accumulate=4))) == pytest.approx(whole / 4, rel=0.1)
    assert activations(replace(small, remat="blocks")) < 0.7 * whole
    last = activations(replace(small, trainable="decoder.conv_out"))  # its input is the only map that is kept
    assert last < 0.2 * whole


def test_a_start_that_cannot_fit_compiles_nothing(small, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "memory_limit", lambda _: 1000)
    monkeypatch.setattr(Parallel, "compile", None)
    with pytest.raises(TrainError, match="a step needs at least"):
        train(small, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_cannot_fit_is_refused_with_remedies(small, parallel):
    rows = memory_rows(small, parallel, {})
    require_room(rows, sum(rows.values()), small)
    with pytest.raises(TrainError, match=r"at least .* GiB.* --dtype bfloat16, --remat blocks, more parts") as refused:
        require_room(rows, sum(rows.values()) - 1, small)
    assert refused.value.value == sum(rows.values())
