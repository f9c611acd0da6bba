"""Speed and time left: what is measured between which updates."""

import pytest

from flax_vae.train.devices.compiled_step import StepOperations
from flax_vae.train.report.speed import Speed


@pytest.fixture
def now(monkeypatch):
    """Returns the clock, a list of one number of seconds."""
    seconds = [1000.0]
    monkeypatch.setattr("flax_vae.train.report.speed.time.monotonic", lambda: seconds[0])
    return seconds


def test_the_rate_leaves_compiling_evaluating_and_saving_out(now):
    speed = Speed(4, 1, None)
    speed.add(21)  # the update that compiles
    assert speed.read(None) == {} and speed.seconds_left(10) is None
    speed.begin(21)
    now[0] += 20.0
    speed.add(31)
    assert speed.seconds_left(10) == 20.0
    now[0] += 500.0  # the first evaluation, which compiles too
    speed.begin(31)
    now[0] += 10.0
    speed.add(36)
    now[0] += 7.0  # saves a checkpoint, and logs nothing
    speed.begin(36)
    now[0] += 10.0
    speed.add(41)
    assert speed.seconds_left(10) == pytest.approx(10 * 2.0 + 10 * 2 / 20 * 7.0)  # a pause for every ten updates
    assert speed.read(StepOperations(3 * 10**12, 10**12)) == {"images_per_second": 2.0, "tflops_per_second": 1.5}
    assert speed.read(None) == {}


def test_programs_that_are_compiled_later_are_no_pauses(now):
    speed = Speed(4, 1, None)
    speed.skip(1)
    for step in (2, 4, 7):
        now[0] += 100.0  # compiles
        speed.skip(step)
    now[0] += 3.0
    speed.add(10)
    assert speed.seconds_left(100) == pytest.approx(100.0)


def test_updates_before_the_discriminator_count_without_it(now):
    speed = Speed(4, 2, 50e12, gan_start=10)
    speed.begin(4)
    for step in (9, 11, 14):  # 5 without; 1 without and 1 with; 3 with
        now[0] += 5.0
        speed.add(step)
    found = speed.read(StepOperations(9 * 10**12, 6 * 10**12))
    assert found["tflops_per_second"] == pytest.approx((6 * 6 + 4 * 9) / 15)
    assert found["mfu"] == pytest.approx((6 * 6 + 4 * 9) / 15 / (2 * 50))
