"""What an evaluation tells of the latents: frequencies, KL of each channel, principal components, equivariance."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from flax_vae import AutoEncoder, save_pretrained
from flax_vae.images import open_images
from flax_vae.train.cli import evaluate as eval_cli
from flax_vae.train.evaluation import PrincipalComponents, equivariance_psnr
from flax_vae.train.evaluation.equivariance import central_equivariance, equivariance_side
from flax_vae.train.evaluation.statistics import PosteriorStats, RunningCovariance
from tests.flax_vae.random_models import random_params
from tests.train.conftest import SMALL
from tests.train.runs import ENVIRONMENT

rng = np.random.default_rng(0)


def measured(*images, logvar=None):
    gathered = PosteriorStats(images[0].shape[-1])
    for image in images:
        gathered.add(image[None], None if logvar is None else np.full_like(image[None], logvar))
    return gathered.result()


def test_waves_are_energy_in_their_band():
    """A cosine of amplitude a has the variance a² / 2, whichever way it runs."""
    rows, columns = np.mgrid[:32, :48]
    waves = [
        3.0 * np.cos(2 * np.pi * rows / 16),  # 1/16 of a cycle: 1/8 of the highest frequency, the end of the first band
        2.0 * np.cos(2 * np.pi * (columns / 12)),  # in the second
        1.0 * np.cos(2 * np.pi * (rows / 8 + columns / 6)),  # 1/8 and 1/6 of a cycle: the third, by the larger one
        0.5 * np.cos(np.pi * columns),  # the highest one: variance a²
    ]
    z = np.stack([sum(waves), 7.0 + sum(waves)], axis=-1)
    variances = np.array([4.5, 2.0, 0.5, 0.25])
    np.testing.assert_allclose(measured(z).spectrum, variances / variances.sum(), atol=1e-12)
    # Images that differ in brightness differ in the lowest frequency: two means 1 below and above their own.
    variances[0] += 1.0
    np.testing.assert_allclose(measured(z + 1.0, z - 1.0).spectrum, variances / variances.sum(), atol=1e-12)


def test_white_noise_is_what_independent_numbers_have():
    noise = measured(rng.normal(size=(32, 32, 64)), rng.normal(size=(16, 24, 64)))
    np.testing.assert_allclose(noise.spectrum, noise.white_noise, atol=0.01)
    counts = np.array([25 + 9, 56 + 26, 208 + 82, 735 + 267])
    np.testing.assert_allclose(noise.white_noise, counts / counts.sum())


def test_bands_of_latents_of_any_size_are_those_of_a_second_transform():
    images = [rng.normal(size=(*shape, 3)) for shape in [(7, 10), (1, 5), (12, 3)]]
    centred = np.concatenate([image.reshape(-1, 3) for image in images]).mean(0)
    energy = np.zeros(4)
    for image in images:
        height, width, _ = image.shape
        for u in range(height):
            for v in range(width):
                wave = np.exp(-2j * np.pi * (u * np.arange(height)[:, None] / height + v * np.arange(width) / width))
                amplitude = np.einsum("hw,hwc->c", wave, image - centred)
                highest = 2 * max(min(u, height - u) / height, min(v, width - v) / width)
                band = next(number for number, end in enumerate((1 / 8, 1 / 4, 1 / 2, 1)) if highest <= end)
                energy[band] += (np.abs(amplitude) ** 2).sum() / (height * width)
    np.testing.assert_allclose(measured(*images).spectrum, energy / energy.sum(), atol=1e-12)
    assert sum(measured(*images).spectrum) == pytest.approx(1, abs=1e-12)


def test_the_kl_of_a_channel_is_in_nats_per_position():
    mean = np.stack([np.full((4, 6), value) for value in (0.0, 1.0, 3.0)], axis=-1)
    found = measured(mean + rng.normal(size=mean.shape) * [0, 0, 1e-3], logvar=0.0)
    # Of a normal distribution with mean m and variance 1 from the standard one: m² / 2.
    np.testing.assert_allclose(found.channel_kl, [0.0, 0.5, 4.5], atol=1e-2)
    assert found.kl_per_number == pytest.approx(np.mean(found.channel_kl))
    assert found.kl_per_image == pytest.approx(24 * np.sum(found.channel_kl))
    assert (found.active_channels, found.active_share) == (0, 0.0)
    assert measured(mean).channel_kl is measured(mean).kl_per_image is None


def test_two_processes_have_the_statistics_of_one():
    images = [rng.normal(2.0, size=(5, 4 + index, 3)) for index in range(5)]
    halves = [PosteriorStats(3), PosteriorStats(3)]
    for index, image in enumerate(images):
        halves[index % 2].add(image[None], 0.1 * image[None])
    whole = PosteriorStats(3)
    for image in images:
        whole.add(image[None], 0.1 * image[None])

    class Gather:
        """Answers each question of the first half with what the second half asks in the same place."""

        def __init__(self, other):
            self.other = iter(other)

        def __call__(self, array):
            return np.stack([array, next(self.other)])

    asked = []
    halves[1].merged(lambda array: asked.append(array) or array[None])
    merged, expected = halves[0].merged(Gather(asked)).result(), whole.result()
    for name, value in vars(expected).items():
        np.testing.assert_allclose(vars(merged)[name], value, rtol=1e-12, err_msg=name)


def test_components_are_numpys_with_the_largest_weight_positive():
    mixed = rng.normal(size=(400, 5)) * [5, 3, 2, 0.1, 0.1] @ np.linalg.qr(rng.normal(size=(5, 5)))[0] + 4.0
    moments = RunningCovariance(5)
    for part in np.split(mixed, 4):
        moments.add(part)
    found = PrincipalComponents.of(moments)
    _, singular, directions = np.linalg.svd(mixed - mixed.mean(0), full_matrices=False)
    np.testing.assert_allclose(found.deviations, singular[:3] / np.sqrt(400), rtol=1e-10)
    np.testing.assert_allclose(np.abs(found.directions @ directions[:3].T), np.eye(3), atol=1e-8)
    assert found.share == pytest.approx((singular[:3] ** 2).sum() / (singular**2).sum())
    assert (found.directions[np.arange(3), np.abs(found.directions).argmax(1)] > 0).all()
    # The mean is grey, three deviations along the first component are all of red and no more is.
    along = found.mean + np.array([-9, -3, 0, 1.2, 3, 9])[:, None] * found.deviations[0] * found.directions[0]
    assert found.draw(along[None]).tolist() == [[[red, 128, 128] for red in (1, 1, 128, 179, 255, 255)]]
    one = RunningCovariance(1)
    one.add(mixed[:, :1])
    assert PrincipalComponents.of(one).draw(mixed[None, :, :1]).shape == (1, 400, 3)


def test_equivariance_is_measured_in_the_centre_of_the_first_images():
    assert equivariance_side(SMALL, [(20, 31), (19, 400)]) == 18
    assert equivariance_side(SMALL, [(600, 500)]) == 256
    assert equivariance_side(SMALL, [(600, 500), (7, 30)]) is None


def test_the_command_prints_and_writes_what_it_measures(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for name, shape in {"a.png": (13, 18), "b.png": (12, 12), "c.png": (12, 12)}.items():
        Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(tmp_path / "images" / name)
    model = AutoEncoder(SMALL)
    params = random_params(model)
    save_pretrained(tmp_path / "model", model, params)
    flags = ["model", "--data", "images", "--lpips", "none", "--json", "all.json", "--components", "z.png"]
    assert eval_cli.main([*flags, "--equivariance", "2", "--worst", "2"]) == 0
    out = capsys.readouterr().out
    written = json.loads((tmp_path / "all.json").read_text())
    latents, equivariance = written["latents"], written["equivariance"]
    bands = [line.split()[1:] for line in out.splitlines() if line.startswith("energy")]
    assert bands == [[f"{share:.1%}" for share in latents["spectrum"]]]
    rows = [line.split() for line in out.splitlines() if line[:1] in set("0123")]
    assert [float(row[4]) for row in rows[:4]] == pytest.approx(latents["channel_kl"], abs=1e-4)
    assert f"active channels: {latents['active_channels']} of 4" in out

    source = open_images("images")
    squares = np.stack([source[0][0:12, 3:15], source[1]])
    assert equivariance["side"] == 12
    assert equivariance["psnr"] == pytest.approx(equivariance_psnr(model, params, squares).tolist(), abs=1e-3)
    assert f"equivariance: {np.mean(equivariance['psnr']):.2f} dB (12 x 12 pixels in the centre of 2 images;" in out
    assert central_equivariance(model, params, source, [1], 12) == pytest.approx(equivariance["psnr"][1:], abs=1e-3)
    with Image.open(tmp_path / "z.png") as picture:
        assert picture.height == 4 + (24 + 13 + 4) + (24 + 12 + 4)
        # The images themselves, to the left of their latents.
        np.testing.assert_array_equal(np.asarray(picture)[28:41, 4:22], source[0])
        latent = np.asarray(picture)[28:41, 26:44]
        assert len(np.unique(latent.reshape(-1, 3), axis=0)) > 20


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(tmp_path):
    (tmp_path / "images").mkdir()
    for index in range(5):
        shape = (10, 14, 3) if index % 2 else (12, 16, 3)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(tmp_path / "images" / f"{index}.png")
    (tmp_path / "brightness.py").write_text("def of(images): return images.mean((1, 2))\n")
    model = AutoEncoder(SMALL)
    save_pretrained(tmp_path / "model", model, random_params(model))
    words = [sys.executable, "-m", "flax_vae.train", "eval", "model", "--data", "images", "--lpips", "none"]
    words += ["--batch-size", "1", "--equivariance", "3", "--features", "brightness:of", "--write-statistics"]
    written, configs = [], []

    def run(count, *more):
        """Returns the exit codes and the outputs of processes, of which the last has further flags."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        joined = [["--coordinator", address, "--processes", str(count), "--process", str(i)] for i in range(count)]
        processes = [
            subprocess.Popen(
                [*words, "--json", f"{count} {index}.json", *(joined[index] if count > 1 else []),
                 *(more if index + 1 == count else [])],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
                env=os.environ | ENVIRONMENT,
            )
            for index in range(count)
        ]  # fmt: skip
        outputs = [process.communicate(timeout=240)[0] for process in processes]
        return [process.returncode for process in processes], outputs

    for count in (1, 2):
        codes, outputs = run(count)
        assert codes == [0] * count, outputs
        assert ["rFID:" in output for output in outputs] == [True, False][:count]
        written.append(json.loads((tmp_path / f"{count} 0.json").read_text()))
        configs.append(json.loads((tmp_path / "model" / "config.json").read_text()))
    one, two = written
    assert not (tmp_path / "2 1.json").exists()
    assert one["images"] == two["images"] and one["equivariance"]["side"] == two["equivariance"]["side"]
    # Sums in float32 depend on the number of threads that JAX gives a process.
    assert one["equivariance"]["psnr"] == pytest.approx(two["equivariance"]["psnr"], abs=1e-4)
    assert one["rfid"] == pytest.approx(two["rfid"], rel=1e-9)
    for name, value in one["latents"].items():
        np.testing.assert_allclose(two["latents"][name], value, rtol=1e-11, atol=1e-12, err_msg=name)
    for name in ("latent_mean", "latent_std"):
        np.testing.assert_allclose(configs[0][name], configs[1][name], rtol=0, atol=1e-12)

    codes, outputs = run(2, "--equivariance", "2")
    assert codes == [1, 1] and all("equivariance" in output.splitlines()[-1] for output in outputs), outputs
