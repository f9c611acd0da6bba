"""The thorough evaluation: its numbers against formulas written down a second time, and the command around it."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from inspect import signature

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flax_vae import AutoEncoder, from_pretrained, init_params, save_pretrained
from flax_vae.convert import PRESETS, load_folder
from flax_vae.images.scores import Comparison, ImageScores, psnr, ssim
from flax_vae.images.sizes import to_float, to_uint8
from flax_vae.images.sources.open import open_images
from flax_vae.train.cli import evaluate as eval_cli
from flax_vae.train.errors import DataError, NotFiniteError, TrainError
from flax_vae.train.evaluation.fid import FrechetMeter, frechet_distance, load_extractor
from flax_vae.train.evaluation.measured_scale import write_scale
from flax_vae.train.evaluation.statistics import PosteriorStats, RunningCovariance
from flax_vae.train.evaluation.tables import latent_lines, table
from flax_vae.train.evaluation.whole_images import Evaluation, PerceptualDistance, Report
from flax_vae.train.report.pictures import save_comparisons
from flax_vae.train.run.directory import RunDirectory
from tests.train.conftest import SMALL

rng = np.random.default_rng(0)

# ------------------------------------------------------------------------------------------------------ statistics


def moments(vectors):
    gathered = RunningCovariance(vectors.shape[1])
    gathered.add(vectors)
    return gathered


def test_running_moments_are_numpys_even_far_from_zero():
    vectors = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3)) + [1e8, 0.0, -1e8]
    running = RunningCovariance(3)
    for part in np.split(vectors, [0, 1, 7, 300]):  # an empty one too
        running.add(part)
    assert running.count == 500
    np.testing.assert_allclose(running.mean, vectors.mean(0), rtol=1e-14)
    np.testing.assert_allclose(running.covariance(correction=1), np.cov(vectors.T), atol=1e-7)
    with pytest.raises(ValueError, match="add at least 2"):
        moments(vectors[:1]).covariance(correction=1)


def test_latent_statistics_are_those_of_drawn_latents():
    mean = rng.normal([0.5, -1.0, 0.0], [1.0, 2.0, 0.05], (6, 9, 7, 3))
    logvar = rng.normal([-2.0, 0.0, -0.01], 0.1, mean.shape)
    gathered = PosteriorStats(3)
    for part in (slice(0, 1), slice(1, 6)):
        gathered.add(mean[part], logvar[part])
    found = gathered.result()

    draws = mean + np.exp(logvar / 2) * rng.normal(size=(400, *mean.shape))
    np.testing.assert_allclose(found.channel_mean, mean.mean((0, 1, 2)), atol=1e-12)
    np.testing.assert_allclose(found.channel_std, draws.std((0, 1, 2, 3)), rtol=5e-3)
    np.testing.assert_allclose(found.channel_activity, mean.var((0, 1, 2)), rtol=1e-10)
    assert found.active_channels == 2
    assert found.std == pytest.approx(draws.std(), rel=5e-3)
    assert found.shift_factor == pytest.approx(mean.mean())
    scaled = found.scale_factor * (draws - found.shift_factor)
    assert (scaled.mean(), scaled.std()) == (pytest.approx(0, abs=5e-3), pytest.approx(1, rel=5e-3))
    # KL of two Gaussians by its integral: E_q[log q - log p], over the draws.
    log_q = -0.5 * ((draws - mean) ** 2 / np.exp(logvar) + logvar)
    assert found.kl_per_number == pytest.approx((log_q + 0.5 * draws**2).mean(), rel=5e-3)
    assert found.kl_per_image == pytest.approx(found.kl_per_number * 9 * 7 * 3)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_latents_that_say_nothing_are_refused(value):
    gathered = PosteriorStats(1)
    gathered.add(np.full((1, 2, 2, 1), value), np.full((1, 2, 2, 1), -np.inf))
    with pytest.raises(TrainError, match="check the weights"):
        gathered.result()


# --------------------------------------------------------------------------------------------------- Fréchet distance


def uncorrelated(mean, std):
    """Four points per axis pair whose sample mean and (diagonal) covariance are exact."""
    mean, std = np.asarray(mean, float), np.asarray(std, float)
    axes = np.eye(len(mean)) * std * np.sqrt((2 * len(mean) - 1) / 2)
    return moments(mean + np.concatenate([axes, -axes]))


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_form():
    first, second = uncorrelated([0, 1, 2], [1, 2, 3]), uncorrelated([1, 1, 0], [2, 2, 0.5])
    np.testing.assert_allclose(first.covariance(correction=1), np.diag([1.0, 4.0, 9.0]), atol=1e-12)
    # |m1 - m2|² + sum (s1 - s2)²
    assert frechet_distance(first, second) == pytest.approx((1 + 0 + 4) + (1 + 0 + 6.25), rel=1e-12)


def test_frechet_distance_does_not_change_under_a_rotation():
    first, second = rng.normal(size=(50, 4)), 3 * rng.normal(size=(60, 4)) + 1
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    plain = frechet_distance(moments(first), moments(second))
    assert frechet_distance(moments(first @ rotation), moments(second @ rotation)) == pytest.approx(plain, rel=1e-10)
    # The trace by a non-symmetric product, as eigenvalues of C1 C2.
    c1, c2 = np.cov(first.T), np.cov(second.T)
    overlap = np.sqrt(np.linalg.eigvals(c1 @ c2).real).sum()
    expected = np.sum((first.mean(0) - second.mean(0)) ** 2) + np.trace(c1 + c2) - 2 * overlap
    assert plain == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_equal_sets_is_zero_although_most_directions_are_empty():
    vectors = 100 * rng.normal(size=(5, 64))  # rank 4
    assert frechet_distance(moments(vectors), moments(vectors)) < 1e-8


@pytest.mark.parametrize(
    ("extractor", "message"),
    [
        (lambda images: images.mean((1, 2, 3)), "one vector of finite numbers for each"),
        (lambda images: np.full((len(images), 2), np.nan), "one vector of finite numbers for each"),
        (lambda images: images.reshape(len(images), -1), "resize the images in the extractor"),
    ],
)
def test_extractors_that_misbehave_are_refused(extractor, message):
    meter = FrechetMeter(extractor)
    with pytest.raises(TrainError, match=message):
        for side in (2, 3):
            meter.add(np.zeros((2, side, side, 3), np.uint8), np.zeros((2, side, side, 3), np.uint8))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("numpy", "module:function"),
        ("no_such_module:f", "run in the folder of no_such_module.py"),
        ("flax_vae.train.evaluation.fid:nothing", "has no function 'nothing'"),
    ],
)
def test_extractors_that_are_not_there_are_refused(name, message):
    with pytest.raises(TrainError, match=message):
        load_extractor(name)


# --------------------------------------------------------------------------------------------------- whole data sets


def random_params(record):
    """Random in every tensor, without compiling anything."""
    model = AutoEncoder(record)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(0.1 * draw.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def params():
    return random_params(SMALL)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Two images of one size around one of another; neither size is a multiple of the model's factor, 2."""
    folder = tmp_path_factory.mktemp("three")
    for name, shape in {"a.png": (13, 17), "b.png": (9, 20), "c.png": (13, 17)}.items():
        Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(folder / name)
    return folder


@jax.jit
def not_finite(params):
    conv = params["decoder"]["conv_in"]
    damaged = {**conv, "bias": conv["bias"].at[3].set(jnp.nan)}
    return {**params, "decoder": {**params["decoder"], "conv_in": damaged}}


def whole_model(params, images):
    apply = partial(AutoEncoder(SMALL).apply, {"params": params})
    return apply(apply(images, sample=False, method="encode"), method="decode"), apply(images, method="posterior")


def by_hand(params, image):
    """Padded by hand, reconstructed alone."""
    height, width, _ = image.shape
    rows, columns = (np.minimum(np.arange(side + side % 2), side - 1) for side in (height, width))
    x, posterior = whole_model(params, to_float(image[rows][:, columns])[None])
    return to_uint8(np.asarray(x))[0, :height, :width], posterior


def mean_difference(a, b, sizes, mesh):
    """In place of LPIPS."""
    parts = zip(np.abs(a - b), sizes, strict=True)
    return np.array([difference[:height, :width].mean() for difference, (height, width) in parts])


def close(a, b):
    """Equal up to the rounding of a batch: a number that lies at a half may go the other way."""
    return np.abs(a.astype(int) - b).max() <= 1


def test_every_image_is_reconstructed_whole(params, three):
    seen = {}
    features = lambda images: images.reshape(len(images), -1, 3).mean(1)  # noqa: E731
    perceptual = PerceptualDistance(mean_difference, smallest_side=10)
    evaluate = Evaluation(AutoEncoder(SMALL), params, 2, perceptual=perceptual, frechet=FrechetMeter(features))
    source = open_images(str(three))
    report = evaluate(source, 99, lambda it: seen.update({it.scores.name: it}))

    expected = {source.name(index): by_hand(params, source[index]) for index in range(3)}
    assert [image.name for image in report.images] == ["a.png", "b.png", "c.png"]
    for index, image in enumerate(report.images):
        original, reconstruction = source[index], seen[image.name].reconstruction
        assert close(reconstruction, expected[image.name][0])
        np.testing.assert_array_equal(seen[image.name].original, original)
        assert image.psnr == psnr(reconstruction, original)
        if image.name == "b.png":  # 9 pixels high: no window, no tap
            assert image[1:3] == (9, 20)
            assert image.ssim is image.lpips is None
        else:
            assert image.ssim == ssim(reconstruction, original)
            assert image.lpips == pytest.approx(np.abs(to_float(reconstruction) - to_float(original)).mean(), rel=1e-5)
    mean = report.mean()
    assert mean["psnr"] == pytest.approx(np.mean([image.psnr for image in report.images]))
    assert mean["ssim"] == pytest.approx((report.images[0].ssim + report.images[2].ssim) / 2)

    means = np.concatenate([np.asarray(posterior.mean).reshape(-1, 4) for _, posterior in expected.values()])
    np.testing.assert_allclose(report.latents.channel_mean, means.mean(0), atol=1e-5)
    kl = np.mean([float(posterior.kl()[0]) for _, posterior in expected.values()])
    assert report.latents.kl_per_image == pytest.approx(kl, rel=1e-5)

    sets = [
        np.concatenate([features(image[None]) for image in images])
        for images in zip(*((it.original, it.reconstruction) for it in seen.values()), strict=True)
    ]
    assert report.rfid == pytest.approx(frechet_distance(*map(moments, sets)), rel=1e-9)


def test_an_incomplete_batch_is_filled_up_and_the_filling_is_not_counted(params, three):
    evaluate = Evaluation(AutoEncoder(SMALL), params)
    image = open_images(str(three))[0]
    filled = replace(evaluate, batch_size=2)(Listed([image, image, image]), 3)
    once = evaluate(Listed([image]), 1)
    assert [scores.psnr for scores in filled.images] == pytest.approx([once.images[0].psnr] * 3, abs=0.01)
    assert filled.latents.channel_activity == pytest.approx(once.latents.channel_activity, rel=1e-4)
    assert filled.latents.kl_per_image == pytest.approx(once.latents.kl_per_image, rel=1e-4)


class Listed:
    """Images in memory."""

    where = "memory"

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def name(self, index):
        return str(index)

    def size(self, index):
        return self.images[index].shape[:2]

    def __getitem__(self, index):
        return self.images[index]


def test_a_model_with_time_is_told_which(monkeypatch):
    record = replace(SMALL, time_emb_dim=8, time_embedding="sinusoidal")
    told = []

    def encode(model, mesh, params, images, time):
        told.append(np.asarray(time))
        return images, images[..., :1], np.zeros_like(images[..., :1])

    monkeypatch.setattr("flax_vae.inference.reconstruction._encode", encode)
    monkeypatch.setattr(
        "flax_vae.inference.reconstruction._decode",
        lambda model, mesh, params, z, time: told.append(np.asarray(time)) or z,
    )
    image = rng.integers(0, 256, (16, 16, 3), np.uint8)
    Evaluation(AutoEncoder(replace(record, z_channels=1)), {}, 2, time=300.0)(Listed([image, image]), 2)
    assert [time.tolist() for time in told] == [[300.0, 300.0]] * 2


def test_bands_are_what_decodes_where_they_are_asked_for(params, three, monkeypatch):
    from flax_vae import decode_in_bands

    latents = []

    def decode(model, params, z, time):
        latents.append(z.shape)
        return np.zeros((len(z), 2 * z.shape[1], 2 * z.shape[2], 3), np.float32)

    monkeypatch.setattr("flax_vae.inference.reconstruction.decode_in_bands", decode)
    assert signature(decode_in_bands).parameters.keys() >= signature(decode).parameters.keys()
    seen = []
    Evaluation(AutoEncoder(SMALL), params, 2, in_bands=True)(open_images(str(three)), 3, seen.append)
    assert latents == [(2, 7, 9, 4), (1, 5, 10, 4)]
    assert all((it.reconstruction == 128).all() for it in seen)


def test_no_images_are_no_evaluation(params, tmp_path):
    with pytest.raises(DataError, match="at least one"):
        Evaluation(AutoEncoder(SMALL), params)(Listed([]), 5)


# ---------------------------------------------------------------------------------------------------------- pictures


def test_a_reconstruction_that_is_not_finite_has_no_scores(params, three):
    conv = params["decoder"]["conv_out"]
    huge = {**conv, "kernel": jnp.full_like(conv["kernel"], 3e38)}  # finite weights, whose products are not
    broken = {**params, "decoder": {**params["decoder"], "conv_out": huge}}
    with pytest.raises(NotFiniteError, match=r"the reconstruction of [abc].png holds NaN or infinite values"):
        Evaluation(AutoEncoder(SMALL), broken)(open_images(str(three)), 3)


def test_comparisons_show_original_reconstruction_and_difference(tmp_path):
    original = np.full((30, 40, 3), 100, np.uint8)
    scores = ImageScores("x.png", 30, 40, 20.0, None, None)
    tall = Comparison(np.zeros((2000, 1000, 3), np.uint8), np.full((2000, 1000, 3), 255, np.uint8), scores)
    save_comparisons(tmp_path / "grid.png", [Comparison(original, original + np.uint8(10), scores), tall])
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    top, width = 4 + 24, 40
    for column, value in enumerate((100, 110, 40)):  # four times 10
        left = 4 + column * (width + 4)
        assert np.unique(grid[top : top + 30, left : left + width]).tolist() == [value]
    assert grid.shape[0] == 4 + (24 + 30 + 4) + (24 + 512 + 4)


# ----------------------------------------------------------------------------------------------------------- the scale


def test_the_scale_goes_into_the_configuration_and_nothing_else_changes(params, tmp_path):
    save_pretrained(tmp_path / "model", AutoEncoder(SMALL), params)
    before = load_folder(tmp_path / "model")[1]
    gathered = PosteriorStats(1)
    gathered.add(np.array([1.0, 5.0]).reshape(1, 1, 2, 1), np.log([3.0, 7.0]).reshape(1, 1, 2, 1))
    record = write_scale(tmp_path / "model", gathered.result())
    assert (record.shift_factor, record.scale_factor) == (3.0, 0.333333)  # variance 4 of the means, 5 around them
    after = load_folder(tmp_path / "model")[1]
    assert {name: array.tobytes() for name, array in after.items()} == {n: a.tobytes() for n, a in before.items()}
    model, _ = from_pretrained(tmp_path / "model")
    assert model.params == record == replace(SMALL, scale_factor=0.333333, shift_factor=3.0)


def test_a_scale_is_not_written_where_it_does_not_belong(tmp_path):
    with pytest.raises(TrainError, match="not a model folder"):
        write_scale(tmp_path, None)
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(TrainError, match="model folders of this package only"):
        write_scale(tmp_path, None)
    (tmp_path / "config.json").write_text(json.dumps(PRESETS["flux2"].to_dict()))
    with pytest.raises(TrainError, match="statistics that are kept with the weights"):
        write_scale(tmp_path, None)


# -------------------------------------------------------------------------------------------------------- the command


def test_help_answers_without_loading_a_framework():
    code = (
        "import sys; from flax_vae.train.cli import evaluate as eval_cli\n"
        "try: eval_cli.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'jax', 'flax', 'numpy', 'PIL', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for flag in (
        "RUN_OR_MODEL",
        "--data",
        "--limit",
        "--batch-size",
        "--json",
        "--grid",
        "--features",
        "--write-scale",
    ):
        assert flag in done.stdout


def test_the_command_measures_the_export_of_a_run(params, three, tmp_path, capsys, monkeypatch):
    save_pretrained(tmp_path / "run" / "export", AutoEncoder(SMALL), params)
    (tmp_path / "brightness.py").write_text("def of(images): return images.mean((1, 2))\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    flags = ["run", "--data", str(three), "--batch-size", "2", "--lpips", "none", "--features", "brightness:of"]
    assert eval_cli.main([*flags, "--json", "all.json", "--grid", "worst.png", "--worst", "1", "--write-scale"]) == 0
    out = capsys.readouterr().out
    written = json.loads((tmp_path / "all.json").read_text())
    assert out.splitlines()[0].split() == ["image", "pixels", "PSNR", "SSIM"]
    assert out.splitlines()[4].split()[:4] == ["mean", "of", "3", f"{written['mean']['psnr']:.2f}"]
    assert f"rFID: {written['rfid']:.4f} (3 images, 3 features; fewer" in out
    assert "LPIPS: not asked for" in out
    assert [image["name"] for image in written["images"]] == ["a.png", "b.png", "c.png"]
    assert written["lpips_net"] is written["mean"]["lpips"] is None
    config = json.loads((tmp_path / "run" / "export" / "config.json").read_text())
    assert config["scale_factor"] == pytest.approx(written["latents"]["scale_factor"], rel=1e-5)
    worst = min(written["images"], key=lambda image: image["psnr"])
    with Image.open(tmp_path / "worst.png") as grid:
        assert grid.height == 4 + 24 + worst["height"] + 4


def test_several_models_are_compared_on_what_the_first_held_out(params, small, folder, tmp_path, capsys, monkeypatch):
    for name in ("first", "second"):
        run = RunDirectory(tmp_path / name)
        run.begin(small)
        run.checkpoints.mkdir()
        save_pretrained(run.export, AutoEncoder(SMALL), params)
    monkeypatch.chdir(tmp_path)
    assert eval_cli.main(["first", "second", "--lpips", "none"]) == 0
    head, first, second, about = capsys.readouterr().out.splitlines()
    assert head.split() == ["model", "PSNR", "SSIM"]
    assert (first.split()[0], second.split()[0]) == ("first", "second")
    assert first.split()[1:] == second.split()[1:]
    assert about == f"1 image of {folder}/d.png; LPIPS: not asked for"
    assert eval_cli.main(["first", "second", "--json", "x.json"]) == 1
    assert "--json needs exactly one model, not 2" in capsys.readouterr().err
    assert eval_cli.main(["first/export", "--lpips", "none", "--equivariance", "0"]) == 0
    assert "d.png      30 x 70" in capsys.readouterr().out
    (tmp_path / "first" / "export").rename("elsewhere")
    assert eval_cli.main(["elsewhere"]) == 1
    assert "not in a run directory, which would say what was held out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["run"], "has no export/ yet; let the run end, or name a checkpoint: run/checkpoints/20"),
        (["model", "--limit", "0"], "limit=0 must be at least 1"),
        (["model", "--features", "brightness"], "module:function"),
        (["model", "--worst-by", "lpips", "--lpips", "none"], "worst_by=lpips needs LPIPS"),
        (["model", "--lpips-weights", "missing.pth"], "missing.pth"),
        (["run/checkpoints/20", "--write-scale"], "is not a model folder"),
        (["damaged"], "damaged holds values that are NaN or infinite, in decoder/conv_in/bias (1 of "),
        (["model", "damaged"], "damaged holds values that are NaN or infinite, in decoder/conv_in/bias (1 of "),
    ],
)
def test_what_the_caller_can_put_right_is_one_line(flags, message, params, three, tmp_path, capsys, monkeypatch):
    save_pretrained(tmp_path / "model", AutoEncoder(SMALL), params)
    save_pretrained(tmp_path / "damaged", AutoEncoder(SMALL), not_finite(params))
    for step in ("9", "20"):
        (tmp_path / "run" / "checkpoints" / step).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert eval_cli.main([*flags, "--data", str(three)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_of_many_images_the_worst_are_shown_and_equal_ones_have_no_json_number(tmp_path):
    from flax_vae.train.evaluation.tables import write_report_json

    gathered = PosteriorStats(1)
    gathered.add(rng.normal(size=(2, 2, 2, 1)), np.zeros((2, 2, 2, 1)))
    images = [ImageScores(str(index), 8, 8, float(index), None, 1.0 - index) for index in range(60)]
    images[7] = images[7]._replace(psnr=float("inf"))
    report = Report(images, gathered.result(), None)
    lines = table(report, "psnr")
    assert "50 worst of 60 images by PSNR" in lines[0]
    assert [line.split()[0] for line in lines[2:10]] == ["0", "1", "2", "3", "4", "5", "6", "8"]
    assert table(report, "lpips")[2].split()[0] == "0"
    write_report_json(tmp_path / "x.json", {}, report)
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["images"][7]["psnr"] is None
    assert written["images"][8]["psnr"] == 8.0
    assert "none to suggest" in latent_lines(report.latents, PRESETS["flux2"])[-1]
    assert "suggest scale_factor" in latent_lines(report.latents, SMALL)[-1]
