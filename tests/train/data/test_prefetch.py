import gc
import threading
import time

import jax
import numpy as np
import pytest

from flax_vae.images.read import StorageError
from flax_vae.train.config.schema import DataConfig
from flax_vae.train.data.photographs import Photographs
from flax_vae.train.data.prefetch import Batches
from flax_vae.train.errors import DataError

SEED, BATCH = 3, 4


@pytest.fixture
def photographs(folder):
    return Photographs(DataConfig(folder=str(folder), crop_size=8))


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("decode", "place"))]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    assert threads() == []
    yield
    assert threads() == []


def wait_until(condition):
    """Returns whether the condition came true within some seconds."""
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()


@pytest.mark.parametrize("share", [slice(None), slice(1, 3), slice(0, BATCH, 2)])
def test_the_batches_are_those_of_the_steps_in_order_however_slow_some_are(photographs, monkeypatch, share):
    wanted = [photographs.batch(SEED, step, BATCH)[share] for step in range(5, 12)]
    crop = photographs.crop

    def uneven(seed, step, index):
        time.sleep(0.001 * ((7 * step + 3 * index) % 5))
        return crop(seed, step, index)

    monkeypatch.setattr(photographs, "crop", uneven)
    with Batches(photographs, SEED, 5, 12, BATCH, place=lambda batch: batch, share=share, workers=3) as batches:
        got = list(batches)
        assert next(batches, None) is None
    assert got[0].dtype == np.float32
    np.testing.assert_array_equal(got, wanted)


def test_as_many_batches_as_asked_for_are_placed_while_the_caller_is_busy(photographs):
    placed = []

    def place(batch):
        assert threading.current_thread().name.startswith("place")
        placed.append(batch)
        return len(placed)

    with Batches(photographs, SEED, 0, 100, BATCH, place=place, ahead=3) as batches:
        assert placed == []
        assert next(batches) == 1
        assert wait_until(lambda: len(placed) == 4)  # the caller's, and three ahead
        time.sleep(0.05)
        assert len(placed) == 4
        assert next(batches) == 2
        assert wait_until(lambda: len(placed) == 5)


def test_no_batch_shares_memory_with_an_earlier_one(photographs):
    with Batches(photographs, SEED, 0, 6, BATCH, place=lambda batch: batch) as batches:
        got = list(batches)
    assert not any(np.shares_memory(a, b) for n, a in enumerate(got) for b in got[:n])


def test_an_error_comes_at_its_own_step(photographs, monkeypatch):
    crop = photographs.crop

    def failing(seed, step, index):
        if (step, index) == (2, 1):
            raise StorageError("the disk is gone")
        time.sleep(0.002)  # so that the batch that fails is done before those that come first
        return crop(seed, step, index)

    monkeypatch.setattr(photographs, "crop", failing)
    batches = Batches(photographs, SEED, 0, 9, BATCH, place=lambda batch: batch, ahead=4)
    for step in range(2):
        np.testing.assert_array_equal(next(batches), photographs.batch(SEED, step, BATCH))
    with pytest.raises(DataError, match="the disk is gone"):
        next(batches)
    assert threads() == []
    assert next(batches, None) is None


def test_an_error_of_placing_is_the_callers(photographs):
    def place(batch):
        raise RuntimeError("no memory on the device")

    with pytest.raises(RuntimeError, match="no memory"):
        next(Batches(photographs, SEED, 0, 9, BATCH, place=place))


def test_stopping_early_waits_for_no_batch(photographs, monkeypatch):
    crop, made = photographs.crop, []

    def slow(seed, step, index):
        made.append(step)
        time.sleep(0.01)
        return crop(seed, step, index)

    monkeypatch.setattr(photographs, "crop", slow)
    with (
        pytest.raises(KeyboardInterrupt),
        Batches(photographs, SEED, 0, 50, BATCH, place=lambda batch: batch, workers=1, ahead=20) as batches,
    ):
        next(batches)
        raise KeyboardInterrupt
    assert len(made) < 3 * BATCH


def test_batches_that_are_forgotten_leave_no_thread(photographs):
    batches = Batches(photographs, SEED, 0, 9, BATCH, place=lambda batch: batch)
    next(batches)
    del batches
    gc.collect()
    assert wait_until(lambda: threads() == [])


def test_batches_reach_a_device_under_the_guard_of_the_training_loop(photographs):
    with jax.transfer_guard("disallow"):
        place = lambda batch: jax.device_put(batch, jax.devices()[1])  # noqa: E731
        with Batches(photographs, SEED, 0, 3, BATCH, place=place) as batches:
            got = list(batches)
    assert all(batch.devices() == {jax.devices()[1]} for batch in got)
    np.testing.assert_array_equal(jax.device_get(got), [photographs.batch(SEED, step, BATCH) for step in range(3)])


def test_no_steps_make_no_batches(photographs):
    assert list(Batches(photographs, SEED, 7, 7, BATCH, place=lambda batch: batch)) == []


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"ahead": 0}])
def test_wrong_numbers_are_refused(photographs, wrong):
    with pytest.raises(ValueError, match="=0 must be at least 1"):
        Batches(photographs, SEED, 0, 1, BATCH, place=lambda batch: batch, **wrong)
