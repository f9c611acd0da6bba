"""The evaluation during training is that of `flax-vae-train eval`: same image, same code, same numbers."""

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
from flax_vae.train.config.schema import LossConfig, TimeConfig
from flax_vae.train.data.photographs import Photographs, held_out_image
from flax_vae.train.devices.parallel import make_parallel
from flax_vae.train.evaluation.held_out import HeldOutEvaluation
from flax_vae.train.evaluation.whole_images import Evaluation
from flax_vae.train.loop import describe_scores, train
from flax_vae.train.losses.perceptual import NETS, Lpips, lpips
from flax_vae.train.report.metrics_log import read_metrics
from tests.train.conftest import SMALL


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
        assert eval_cli.main([str(tmp_path / measured), "--lpips", "none"]) == 0
        head, row = capsys.readouterr().out.splitlines()[:2]
        cells = dict(zip(head.split(), re.split(r"  +", row), strict=True))
        scores = {"PSNR": f"{outcome.scores['psnr']:.2f}", "SSIM": f"{outcome.scores['ssim']:.4f}"}
        assert cells == {"image": "d.png", "pixels": "17 x 40", **scores}
    psnr, kl = {}, {}
    for time in ("7", "0"):
        flags = ["--lpips", "none", "--time", time, "--json", str(tmp_path / "all.json")]
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
    evaluate = HeldOutEvaluation(config, source, parallel.local_devices[0])
    with jax.transfer_guard("disallow"):
        first = evaluate(placed)
        programs = reconstruction._encode._cache_size(), reconstruction._decode._cache_size()
        second = evaluate(placed)
    assert (reconstruction._encode._cache_size(), reconstruction._decode._cache_size()) == programs
    assert first.scores == second.scores == expected[0].scores
    np.testing.assert_array_equal(first.reconstruction, expected[0].reconstruction)


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
    comparison = HeldOutEvaluation(config, source, jax.devices()[0], lpips_weights)(weights)
    assert comparison.original.shape == (64, 149, 3)
    pair = [to_float(pixels[None]) for pixels in (comparison.reconstruction, comparison.original)]
    expected = jax.jit(partial(lpips, net="alex"))(lpips_weights, *pair)
    assert expected[0] > 0
    assert comparison.scores.lpips == pytest.approx(float(expected[0]), rel=1e-6)
    small_source = held_out_image(config.data)
    assert HeldOutEvaluation(config, small_source, jax.devices()[0], lpips_weights)(weights).scores.lpips is None
