"""diffusers 0.39, the last release with Flax, as the judge.

It runs once, in a process of an environment of its own, whose Python `FLAX_VAE_DIFFUSERS_039` names.
"""

import json
import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flax_vae.compat import FlaxAutoencoderKL
from flax_vae.convert.table import flatten
from tests.flax_vae.compat.models import IMAGES, random_params, small

PYTHON = os.environ.get("FLAX_VAE_DIFFUSERS_039")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="FLAX_VAE_DIFFUSERS_039 names no Python with diffusers 0.39")

TOLERANCE = 1e-5  # of the RMS
SEED = 7
LATENTS = np.random.default_rng(1).standard_normal((2, 8, 12, 4)).astype(np.float32)
EXTREME = np.array([0, 0, 0, 0, -99, 99, 0, 1], np.float32)  # logvars far outside [-30, 20]


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Our model and parameters, the folder of the exchange, and the judge's answers."""
    folder = tmp_path_factory.mktemp("exchange")
    vae = small()
    params = random_params(vae)
    vae.save_pretrained(folder / "ours", params=params)
    np.savez(folder / "inputs.npz", **{"images": IMAGES, "latents": LATENTS, "seed": SEED, "extreme bias": EXTREME})
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "JAX_"))}
    environment |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    environment |= {"DIFFUSERS_VERBOSITY": "error"}  # it warns of Flax's end dozens of times
    command = [str(PYTHON), str(Path(__file__).with_name("judge.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return vae, params, folder, dict(np.load(folder / "results.npz"))


def under(prefix: str, results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in results.items() if name.startswith(prefix)}


def assert_same_bits(found, expected: dict[str, np.ndarray]) -> None:
    found = {name: np.asarray(leaf) for name, leaf in flatten(found).items()}
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].tobytes() == array.tobytes(), name


def assert_close(found, expected: np.ndarray, networks: int = 1) -> None:
    assert found.shape == expected.shape
    scale = np.sqrt(np.mean(expected.astype(np.float64) ** 2))
    assert np.abs(np.asarray(found, np.float64) - expected).max() <= TOLERANCE * networks * scale


def test_it_loads_what_we_saved(judged):
    _, params, _, results = judged
    assert_same_bits(params, under("ours/", results))


def test_we_load_what_it_saved(judged):
    vae, _, folder, results = judged
    back, params = FlaxAutoencoderKL.from_pretrained(folder / "theirs")
    assert_same_bits(params, under("theirs/", results))
    assert back == vae


def test_the_configuration_is_the_one_that_it_writes(judged):
    vae, _, folder, results = judged
    assert (folder / "ours" / "config.json").read_bytes() == (folder / "theirs" / "config.json").read_bytes()
    theirs = json.loads(str(results["config"]))
    ours = json.loads(json.dumps(dict(vae.config)))
    assert {key: value for key, value in theirs.items() if not key.startswith("_")}.items() <= ours.items()


@pytest.fixture(scope="module")
def ours(judged):
    """Our answers to what the judge was asked."""
    vae, params, _, _ = judged
    key = jax.random.key(SEED)

    def ask(params, images, latents):
        posterior = vae.apply({"params": params}, images, method=vae.encode).latent_dist
        other = vae.apply({"params": params}, -images, method=FlaxAutoencoderKL.encode).latent_dist
        found = {name: getattr(posterior, name) for name in ("mean", "logvar", "std", "var")}
        found |= {"sample": posterior.sample(key), "mode": posterior.mode(), "nll": posterior.nll(latents)}
        found |= {"kl": posterior.kl(), "kl of two": posterior.kl(other)}
        found["decode"] = vae.apply({"params": params}, latents, method=vae.decode).sample
        found["call"] = vae.apply({"params": params}, images).sample
        called = vae.apply({"params": params}, images, sample_posterior=True, return_dict=False, rngs={"gaussian": key})
        return found | {"sampled call": called[0]}

    def loss(params):
        found = ask(params, IMAGES, LATENTS)
        return jnp.mean(found["sampled call"] ** 2) + jnp.mean(found["kl"]), found

    program = jax.jit(jax.grad(loss, has_aux=True))
    extreme = {**params, "quant_conv": {**params["quant_conv"], "bias": jnp.asarray(EXTREME)}}
    gradients, found = program(params)
    return found, flatten(gradients), program(extreme)[1]["logvar"]


def test_values(judged, ours):
    for name, value in ours[0].items():
        assert_close(value, judged[3][name], networks=2 if "call" in name else 1)


def test_gradients(judged, ours):
    gradients, expected = ours[1], under("gradient/", judged[3])
    assert gradients.keys() == expected.keys()
    scale = np.sqrt(np.mean(np.concatenate([leaf.ravel() for leaf in expected.values()]) ** 2))
    for name, leaf in expected.items():
        assert np.abs(np.asarray(gradients[name]) - leaf).max() <= TOLERANCE * max(scale, np.abs(leaf).max()), name


def test_logvar_is_limited(judged, ours):
    assert {float(ours[2].min()), float(ours[2].max())} == {-30.0, 20.0}
    assert_close(ours[2], judged[3]["limited"])


def test_two_devices(judged):
    vae, params, _, results = judged
    expected = under("parallel/", results)

    def both(params, images, latents):
        posterior = vae.apply({"params": params}, images, method=FlaxAutoencoderKL.encode).latent_dist
        return posterior, vae.apply({"params": params}, latents, method=FlaxAutoencoderKL.decode)

    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    posterior, images = jax.pmap(both)(stacked, IMAGES[:, None], LATENTS[:, None])
    for name, value in (("mean", posterior.mean), ("std", posterior.std), ("decode", images.sample)):
        assert_close(value, expected[name])

    mesh = Mesh(jax.devices()[:2], ("images",))
    shared, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("images"))
    program = jax.jit(both, in_shardings=(shared, split, split), out_shardings=split)
    posterior, images = program(params, IMAGES, LATENTS)
    assert len(images.sample.sharding.device_set) == 2
    for name, value in (("mean", posterior.mean), ("std", posterior.std), ("decode", images.sample)):
        assert_close(value, expected[name][:, 0])


def test_newly_initialised_parameters_are_equal(judged):
    vae, _, _, results = judged
    expected = under("initial/", results)
    found = flatten(vae.init_weights(jax.random.key(3)))
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-6, atol=1e-7)
