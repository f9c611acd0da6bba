"""Tests of students: the teacher's encoder stays as it is, and a decoder of its own widths learns."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from flax_vae import AutoEncoder, TinyAutoEncoder, TinyAutoEncoderParams, from_pretrained, init_params, save_pretrained
from flax_vae.convert.table.rows import flatten
from flax_vae.train.build import load_start, make_components, make_state
from flax_vae.train.cli.flags import Flags, parse_run_flags
from flax_vae.train.cli.resolve import resolve
from flax_vae.train.config import LossConfig, TrainConfig, config_differences, with_teacher
from flax_vae.train.errors import RunError
from flax_vae.train.loop import train
from tests.flax_vae.random_models import random_params
from tests.train.conftest import SMALL

TEACHER = replace(SMALL, ch=64, quant_conv=True, latent_norm="batch_norm")
STUDENT = replace(TEACHER, decoder_widths=(32, 32))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Returns a model folder, and the parameters in it."""
    path, model = tmp_path_factory.mktemp("teacher") / "model", AutoEncoder(TEACHER)
    params = random_params(model)
    save_pretrained(path, model, params)
    return path, params


@pytest.fixture
def config(small, teacher):
    """Returns the settings of a student of four updates."""
    optim = replace(small.optim, schedule="constant", warmup_steps=0, ema_decay=0.5)
    changed = replace(small, model=STUDENT, optim=optim, steps=4, save_every=2)
    return with_teacher(changed, str(teacher[0]))


def assert_same(one, other):
    one, other = flatten(one), flatten(other)
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[path], err_msg=path)


def test_a_student_learns_resumes_exactly_and_exports_the_teachers_encoder(config, teacher, tmp_path):
    straight = train(config, tmp_path / "straight")
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "4")
    resumed = train(config, tmp_path / "resumed")
    assert resumed.step == 4
    assert_same(jax.device_get(straight.state.params), jax.device_get(resumed.state.params))

    begun = make_state(config, make_components(config), load_start(config))
    moved = {
        path: float(np.abs(leaf - flatten(begun.params)[path]).max())
        for path, leaf in flatten(jax.device_get(straight.state.params)).items()
    }
    learns = {path for path in moved if path.startswith(("decoder/", "post_quant_conv/"))}
    assert all((distance > 0) == (path in learns) for path, distance in moved.items())

    model, params = from_pretrained(tmp_path / "straight" / "export")
    assert model.params == STUDENT
    for name in ("encoder", "quant_conv", "bn"):
        assert_same(params[name], teacher[1][name])


TINY_TEACHER = TinyAutoEncoderParams(
    z_channels=4, ch=8, encoder_blocks=(1, 1), decoder_blocks=(1, 1), pool=True, patch=2
)
TINY_STUDENT = replace(TINY_TEACHER, decoder_ch=6, decoder_pool=False)


@pytest.fixture
def tiny(config, tmp_path):
    """Returns the settings of a tiny student of two updates, and the parameters of its teacher."""
    model = TinyAutoEncoder(TINY_TEACHER)
    params = init_params(model, jax.random.key(0))
    save_pretrained(tmp_path / "tiny", model, params)
    loss = replace(config.loss, sample=False)
    return replace(config, model=TINY_STUDENT, loss=loss, teacher=str(tmp_path / "tiny"), steps=2), params


def test_a_tiny_autoencoder_teaches_too(tiny, tmp_path):
    config, teachers = tiny
    begun = make_state(config, make_components(config), load_start(config))
    train(config, tmp_path / "run")
    model, params = from_pretrained(tmp_path / "run" / "export")
    assert model.params == TINY_STUDENT
    assert_same(params["encoder"], teachers["encoder"])
    before, after = flatten(begun.params["decoder"]), flatten(params["decoder"])
    assert all(np.any(before[path] != leaf) for path, leaf in after.items())
    # A checkpoint is a model too.
    assert from_pretrained(tmp_path / "run" / "checkpoints" / "2")[0].params == TINY_STUDENT


def test_a_teacher_of_another_kind_is_refused(config, tiny):
    with pytest.raises(RunError, match="does not fit .* that of a tiny autoencoder, the other that of an autoencoder"):
        load_start(replace(tiny[0], teacher=config.teacher))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable": "encoder.conv_in"}, "trainable='encoder.conv_in' trains the encoder of a tiny autoencoder"),
        ({"loss": LossConfig(kl_weight=0.0)}, "loss.sample=True concerns the posterior"),
        ({"loss": LossConfig(sample=False)}, "loss.kl_weight=1e-06 concerns the posterior"),
        ({"identity_init": True}, "identity_init=True concerns"),
    ],
)
def test_settings_that_a_tiny_autoencoder_cannot_have_are_refused(tiny, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(tiny[0], **changes)


def test_a_tiny_teacher_says_what_the_student_is(tiny):
    asked = ["--teacher", tiny[0].teacher, "--model.decoder-ch", "6", "--model.decoder-pool", "False"]
    config = resolve(parse_run_flags(Flags, prog="flax-vae-train", args=asked), None)
    assert (config.model, config.trainable, config.loss.sample) == (TINY_STUDENT, "decoder", False)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    lines = config_differences(config, replace(config, model=STUDENT))
    assert {"model.ch: 8 -> 64", "model.decoder_ch: 6 -> None"} <= set(lines)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"latent_norm": "scale"}, "latent_norm is 'batch_norm', not 'scale'"),
        ({"z_channels": 8}, "z_channels is 4, not 8"),
        ({"ch": 32, "ch_mult": (1, 1, 1), "decoder_widths": None}, r"ch is 64, not 32; ch_mult is \(1, 1\), not"),
    ],
)
def test_a_student_with_another_encoder_or_other_latents_is_refused(config, changes, named):
    other = replace(config, model=replace(STUDENT, **changes))
    with pytest.raises(RunError, match=f"does not fit the student.*decoder_widths.*{named}"):
        load_start(other)


def test_a_teacher_that_does_not_exist_is_named(config):
    with pytest.raises(RunError, match="teacher='nowhere' cannot be loaded"):
        load_start(replace(config, teacher="nowhere"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable": "all"}, "teacher=.*trainable='all' trains it"),
        ({"start_from": "x"}, "teacher=.*start_from='x'.*use one of them"),
    ],
)
def test_settings_that_contradict_a_teacher_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)
