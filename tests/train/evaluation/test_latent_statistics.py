"""Statistics per channel that `eval` writes into a model folder: numpy's numbers, and what diffusers makes of them."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

from flax_vae import AutoEncoder, from_pretrained, save_pretrained
from flax_vae.autoencoder import TinyAutoEncoder
from flax_vae.convert import PRESETS, TINY_PRESETS, TinyAutoEncoderParams, load_weights, save_folder, save_weights
from flax_vae.images import open_images
from flax_vae.train.errors import TrainError
from flax_vae.train.evaluation.measured_scale import check_normalisable, write_statistics
from flax_vae.train.evaluation.statistics import PosteriorStats
from flax_vae.train.evaluation.whole_images import Evaluation
from tests.conftest import WEIGHTS
from tests.flax_vae.random_models import quick_jit, random_params
from tests.train.conftest import SMALL
from tests.train.runs import ENVIRONMENT

rng = np.random.default_rng(0)
KL = replace(SMALL, ch_mult=(1, 1), scale_factor=0.25, shift_factor=0.5)
TINY = replace(TINY_PRESETS["taesd"], ch=8, z_channels=4, encoder_blocks=(1, 1), decoder_blocks=(1, 1))


def summary(channels=4):
    """Statistics of posteriors far from mean 0, and numpy's of latents drawn from them."""
    gathered = PosteriorStats(channels)
    mean = rng.normal(np.arange(channels) - 1.5, 0.1 + np.arange(channels), (3, 5, 4, channels))
    logvar = rng.normal(-2, 0.3, mean.shape)
    for index in range(3):
        gathered.add(mean[index : index + 1], logvar[index : index + 1])
    deviation = np.sqrt(mean.var((0, 1, 2)) + np.exp(logvar).mean((0, 1, 2)))
    return gathered.result(), mean.mean((0, 1, 2)), deviation


@pytest.mark.torch
@pytest.mark.parametrize("params", [KL, replace(KL, z_channels=16), TINY], ids=["4 channels", "16", "tiny"])
def test_statistics_go_into_folders_of_both_kinds_and_diffusers_reads_them(params, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    tiny = isinstance(params, TinyAutoEncoderParams)
    model = TinyAutoEncoder(params) if tiny else AutoEncoder(params)
    weights = random_params(model)
    save_pretrained(tmp_path / "ours", model, weights)
    save_weights(tmp_path / "theirs", load_weights(tmp_path / "ours"), "diffusers")
    images = rng.uniform(-1, 1, (1, 8, 8, 3)).astype(np.float32)
    raw = np.asarray(run(model, weights, images, method="moments"))[..., : params.z_channels]

    measured, mean, deviation = summary(params.z_channels)
    np.testing.assert_allclose(measured.channel_mean, mean, rtol=1e-12)
    np.testing.assert_allclose(measured.channel_std, deviation, rtol=1e-12)
    before = json.loads((tmp_path / "theirs" / "config.json").read_text())
    for folder in ("ours", "theirs"):
        written = write_statistics(tmp_path / folder, measured)
        assert (written.latent_mean, written.latent_std) == (tuple(measured.channel_mean), tuple(measured.channel_std))
        read, tree = from_pretrained(tmp_path / folder)
        assert read.params == written
        # Each channel is normalised, and decoding takes that back.
        z = run(read, tree, images, sample=False, method="encode")
        np.testing.assert_allclose(z, (raw - mean) / deviation, rtol=1e-4, atol=1e-5)
        again = run(read, tree, z, method="unscale")
        np.testing.assert_allclose(again, raw, rtol=1e-4, atol=1e-5)

    after = json.loads((tmp_path / "theirs" / "config.json").read_text())
    kept = {"latents_mean": measured.channel_mean, "latents_std": measured.channel_std}
    # Of four channels, pipelines take scale and statistics together; of more, or of none, they keep what they had.
    kept |= {"scaling_factor": 1.0, "shift_factor": 0.0} if params.z_channels == 4 and not tiny else {}
    assert after == before | kept
    opened = getattr(diffusers, after["_class_name"]).from_pretrained(tmp_path / "theirs")
    assert list(opened.config.latents_mean) == measured.channel_mean
    assert list(opened.config.latents_std) == measured.channel_std
    # What was converted from our folder says the same.
    save_weights(tmp_path / "converted", load_weights(tmp_path / "ours"), "diffusers")
    converted = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert {key: converted[key] for key in kept} == kept


def run(model, weights, array, **options):
    return quick_jit(lambda weights, array: model.apply({"params": weights}, array, **options))(weights, array)


def test_statistics_are_not_written_where_they_do_not_belong(tmp_path):
    with pytest.raises(TrainError, match="not a model folder"):
        check_normalisable(tmp_path)
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps(PRESETS["flux2"].to_dict()))
    with pytest.raises(TrainError, match="kept with the weights"):
        check_normalisable(tmp_path)
    save_pretrained(tmp_path / "model", AutoEncoder(SMALL), random_params(AutoEncoder(SMALL)))
    before = (tmp_path / "model" / "config.json").read_bytes()
    constant = replace(summary()[0], channel_std=[1.0, 0.0, 1.0, 1.0])
    with pytest.raises(TrainError, match=r"latent_std holds 0.0; expected finite numbers .*, greater than 0"):
        write_statistics(tmp_path / "model", constant)
    assert (tmp_path / "model" / "config.json").read_bytes() == before


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Seven images of three sizes, none of them a multiple of the model's factor."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(7):
        shape = [(13, 17), (9, 20), (31, 11)][index % 3]
        Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(folder / f"{index}.png")
    return folder


def test_the_numbers_are_those_of_numpy_on_one_device_and_on_two(images, monkeypatch):
    model = AutoEncoder(SMALL)
    weights, found, add = random_params(model), {}, PosteriorStats.add
    for count in (1, 2):
        means, variances = [], []

        def keep(self, mean, logvar, means=means, variances=variances):
            means.append(np.float64(mean).reshape(-1, 4))
            variances.append(np.exp(np.float64(logvar)).reshape(-1, 4))
            add(self, mean, logvar)

        monkeypatch.setattr(PosteriorStats, "add", keep)
        devices = tuple(jax.devices()[:count])
        report = Evaluation(model, weights, 2, devices=devices)(open_images(str(images)), 7).latents
        found[count] = report
        mean, variance = np.concatenate(means), np.concatenate(variances)
        assert len(mean) == 3 * 7 * 9 + 2 * 5 * 10 + 2 * 16 * 6
        np.testing.assert_allclose(report.channel_mean, mean.mean(0), rtol=0, atol=1e-12)
        deviation = np.sqrt(mean.var(0) + variance.mean(0))
        np.testing.assert_allclose(report.channel_std, deviation, rtol=0, atol=1e-12)
    assert found[1] == found[2]  # to the last bit


COMMAND = """
import sys
import numpy as np
from flax_vae.train.cli import evaluate
from flax_vae.train.evaluation.statistics import PosteriorStats

add, latents = PosteriorStats.add, []
PosteriorStats.add = lambda self, mean, logvar: (latents.append(mean.reshape(-1, 32)), add(self, mean, logvar))
code = evaluate.main(sys.argv[2:])
np.save(sys.argv[1], np.concatenate(latents))
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.published("taef2")
def test_taef2s_statistics_are_those_of_numpy_on_one_device_and_on_four(tmp_path):
    from flax_vae.train.data import shipped_photographs

    source = open_images(str(shipped_photographs()))
    (tmp_path / "images").mkdir()
    for index in range(len(source)):
        crop = source[index][64 : 64 + 70 + 9 * (index % 2), 100:190]  # two sizes, padded to multiples of 16
        Image.fromarray(crop).save(tmp_path / "images" / f"{index}.png")
    weights = load_weights(WEIGHTS / "taef2")
    configs = []
    for count in (1, 4):
        folder = tmp_path / f"taef2 on {count}"
        save_folder(folder, weights.params, weights.to("flux"))
        flags = [str(folder), "--data", str(tmp_path / "images"), "--lpips", "none", "--batch-size", "1"]
        words = [sys.executable, "-c", COMMAND, str(tmp_path / "z.npy"), *flags, "--write-statistics"]
        environment = os.environ | ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": str(count)}
        subprocess.run(words, check=True, env=environment, capture_output=True, text=True)
        latents = np.load(tmp_path / "z.npy").astype(np.float64)
        assert len(latents) == 3 * (10 * 12 + 10 * 12)
        configs.append(json.loads((folder / "config.json").read_text()))
        np.testing.assert_allclose(configs[-1]["latent_mean"], latents.mean(0), rtol=0, atol=1e-12)
        np.testing.assert_allclose(configs[-1]["latent_std"], latents.std(0), rtol=0, atol=1e-12)
    assert configs[0] == configs[1]
    model, _ = from_pretrained(folder)
    assert model.params == replace(
        TINY_PRESETS["taef2"], **{name: tuple(configs[1][name]) for name in ("latent_mean", "latent_std")}
    )
