"""A long run compiles its step once and transfers nothing implicitly."""

from dataclasses import replace

import jax
import pytest

from flax_vae.train.devices.parallel import PmapParallel
from flax_vae.train.loop import train
from flax_vae.train.report.metrics_log import Reporter

STEPS, SAVE = 300, 50


@pytest.fixture
def recipe(small):
    return replace(
        small,
        model=replace(small.model, ch_mult=(1,), attn_levels=()),
        data=replace(small.data, crop_size=8),
        batch_size=2,
        steps=STEPS,
        log_every=7,
        eval_every=STEPS,
        save_every=SAVE,
    )


@pytest.fixture
def compiled_at(monkeypatch):
    """Returns, for every program that is compiled or read from the cache, the number of updates done before."""
    done, found = [0], []
    advance = Reporter.advance

    def counted(self, step):
        done[0] = step
        advance(self, step)

    def listen(event, seconds, **unused):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(done[0])

    monkeypatch.setattr(Reporter, "advance", counted)
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
def test_three_hundred_steps_compile_once(recipe, compiled_at, tmp_path):
    outcome = train(recipe, tmp_path / "run")
    assert outcome.step == STEPS
    assert compiled_at.count(0) > 0  # the listener is called
    # Before the first update; what copies the state for the first checkpoint; what looks at the held-out photograph.
    assert set(compiled_at) <= {0, SAVE, STEPS}


def test_a_batch_on_the_host_ends_the_run(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(PmapParallel, "place_batch", lambda self, share: share.reshape(2, -1, *share.shape[1:]))
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(replace(recipe, steps=1), tmp_path / "run")
