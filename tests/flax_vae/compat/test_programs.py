"""Short programs that use diffusers' former Flax classes as published projects do, with another import.

They run on every version of JAX that is tested, and without PyTorch.
"""

import pickle
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flax_vae import from_pretrained
from flax_vae.compat import FlaxAutoencoderKL, FlaxDecoder, FlaxEncoder
from tests.flax_vae.compat.models import IMAGES, random_params, small


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model as diffusers' class saved it."""
    folder = tmp_path_factory.mktemp("models") / "vae"
    vae = small()
    vae.save_pretrained(folder, params=random_params(vae))
    return folder


@pytest.fixture(scope="module")
def expected(folder):
    """Mean, standard deviation and their decoded images, by the model of this package."""
    model, params = from_pretrained(folder)

    def run(params, images):
        posterior = model.apply({"params": params}, images, method="posterior")
        scaled = model.apply({"params": params}, posterior.mean, method="scale")
        return posterior.mean, posterior.std, model.apply({"params": params}, scaled, method="decode")

    mean, std, images = jax.jit(run)(params, IMAGES.transpose(0, 2, 3, 1))
    return mean, std, images.transpose(0, 3, 1, 2)


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert np.abs(np.asarray(found) - np.asarray(expected)).max() <= 1e-5 * np.sqrt(np.mean(np.square(expected)))


def test_a_cache_of_latents_and_of_their_mirrored_twins(folder, expected, tmp_path):
    vae, vae_params = FlaxAutoencoderKL.from_pretrained(str(folder))

    @jax.jit
    def moments(images):
        posterior = vae.apply({"params": vae_params}, images, method=FlaxAutoencoderKL.encode).latent_dist
        return jnp.concatenate([posterior.mean, posterior.std], axis=-1)

    np.savez(tmp_path / "0.npz", image=moments(IMAGES), image_flip=moments(IMAGES[..., ::-1]), label=[3, 5])

    batch = np.load(tmp_path / "0.npz")
    mean, std = np.split(batch["image"], 2, axis=-1)
    assert_close(mean, expected[0])
    assert_close(std, expected[1])
    # A mirrored image has other latents than the mirrored latents: the padding is at two of four sides.
    assert np.abs(batch["image_flip"] - batch["image"][:, :, ::-1]).max() > 0.01
    key = jax.random.key(2)
    latents = (mean + std * jax.random.normal(key, mean.shape)) * 0.18215
    posterior = vae.apply({"params": vae_params}, IMAGES, method=FlaxAutoencoderKL.encode).latent_dist
    assert_close(latents, posterior.sample(key=key) * 0.18215)


def test_a_parallel_decoder_that_is_compiled_ahead_of_time(folder, expected):
    vae, params = FlaxAutoencoderKL.from_pretrained(folder)
    devices = jax.local_device_count()
    variables = jax.tree.map(lambda leaf: jnp.stack([leaf] * devices), {"params": params})
    latents = np.asarray(expected[0]).transpose(0, 3, 1, 2).reshape(devices, -1, 4, 8, 12)

    decode = jax.pmap(partial(vae.apply, method=FlaxAutoencoderKL.decode))
    compiled = decode.lower(variables, latents).compile()
    images = compiled(variables, latents).sample

    assert_close(images.reshape(-1, 3, 16, 24), expected[2])
    cost = compiled.cost_analysis()
    flops = (cost[0] if isinstance(cost, list) else cost)["flops"]
    assert flops > 2 * 9 * 32 * 32 * 16 * 24  # one convolution at full resolution


@struct.dataclass
class StableVAE:
    """A model and its parameters in one pytree."""

    params: Any
    module: FlaxAutoencoderKL = struct.field(pytree_node=False)

    @classmethod
    def create(cls, name: str) -> "StableVAE":
        module, params = FlaxAutoencoderKL.from_pretrained(name)
        return cls(params=jax.device_put(params), module=module)

    @jax.jit
    def encode(self, key, images):
        images = images.transpose(0, 3, 1, 2)
        posterior = self.module.apply({"params": self.params}, images, method=self.module.encode).latent_dist
        return posterior.sample(key) * self.module.config.scaling_factor

    @jax.jit
    def decode(self, latents):
        latents = latents / self.module.config.scaling_factor
        images = self.module.apply({"params": self.params}, latents, method=self.module.decode).sample
        return images.transpose(0, 2, 3, 1).clip(-1, 1)

    @property
    def downscale_factor(self) -> int:
        return 2 ** (len(self.module.block_out_channels) - 1)


def test_a_dataclass_that_holds_the_module(folder, expected):
    vae = StableVAE.create(str(folder))
    assert vae.downscale_factor == 2 and vae.module.config.latent_channels == 4
    key = jax.random.key(4)
    latents = vae.encode(key, IMAGES.transpose(0, 2, 3, 1))
    mean, std, images = expected
    assert_close(latents, (mean + std * jax.random.normal(key, mean.shape)) * 0.18215)
    assert_close(vae.decode(mean * 0.18215), images.transpose(0, 2, 3, 1).clip(-1, 1))


def test_arrays_of_the_local_process(folder, expected):
    vae, params = FlaxAutoencoderKL.from_pretrained(folder)
    mesh = Mesh(jax.devices(), ("data",))
    replicated, by_image = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))

    def place(sharding, array):
        return jax.make_array_from_process_local_data(sharding, np.asarray(array))

    params = jax.tree.map(partial(place, replicated), params)

    @partial(jax.jit, out_shardings=by_image)
    def encode(params, images, key):
        posterior = vae.apply({"params": params}, images, method=vae.encode).latent_dist
        return posterior, posterior.sample(key=key) * 0.18215

    @partial(jax.jit, out_shardings=by_image)
    def decode(params, latents):
        return vae.apply({"params": params}, latents / 0.18215, method=vae.decode).sample

    posterior, latents = encode(params, place(by_image, IMAGES), jax.random.key(0))
    assert len(posterior.mean.sharding.device_set) == jax.device_count()
    assert_close(posterior.mean, expected[0])
    assert latents.shape == posterior.mean.shape
    assert_close(decode(params, posterior.mode() * 0.18215), expected[2])


def test_an_encoder_and_a_decoder_of_their_own(folder, expected, tmp_path):
    vae, params = FlaxAutoencoderKL.from_pretrained(folder, dtype=jnp.float32)
    (tmp_path / "vae.pkl").write_bytes(pickle.dumps(jax.device_get(params)))
    params = pickle.loads((tmp_path / "vae.pkl").read_bytes())
    config = vae.config
    shared = dict(
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        act_fn=config.act_fn,
        norm_num_groups=config.norm_num_groups,
        dtype=vae.dtype,
    )
    encoder = FlaxEncoder(
        in_channels=config.in_channels,
        out_channels=config.latent_channels,
        down_block_types=config.down_block_types,
        double_z=True,
        **shared,
    )
    decoder = FlaxDecoder(
        in_channels=config.latent_channels,
        out_channels=config.out_channels,
        up_block_types=config.up_block_types,
        **shared,
    )
    quant_conv = nn.Conv(2 * config.latent_channels, kernel_size=(1, 1), padding="VALID", dtype=vae.dtype)
    post_quant_conv = nn.Conv(config.latent_channels, kernel_size=(1, 1), padding="VALID", dtype=vae.dtype)

    @jax.jit
    def encode(params, images):
        moments = encoder.apply({"params": params["encoder"]}, images, deterministic=True)
        return jnp.split(quant_conv.apply({"params": params["quant_conv"]}, moments), 2, axis=-1)[0]

    def decode(params, latents):
        latents = post_quant_conv.apply({"params": params["post_quant_conv"]}, latents)
        return decoder.apply({"params": params["decoder"]}, latents, deterministic=True)

    @jax.jit
    def step(params, state, latents, images):
        def loss(part):
            found = decode({**params, "decoder": part}, latents)
            return jnp.mean((found - images) ** 2), found

        (value, found), gradients = jax.value_and_grad(loss, has_aux=True)(params["decoder"])
        updates, state = optimizer.update(gradients, state, params["decoder"])
        return {**params, "decoder": optax.apply_updates(params["decoder"], updates)}, state, value, found

    images = IMAGES.transpose(0, 2, 3, 1)
    assert_close(encode(params, images), expected[0])
    optimizer = optax.adam(1e-3)
    state, values = optimizer.init(params["decoder"]), []
    for _ in range(3):
        params, state, value, found = step(params, state, expected[0], images)
        if not values:
            assert_close(found.transpose(0, 3, 1, 2), expected[2])
        values.append(float(value))
    assert values == sorted(values, reverse=True)
    assert jax.tree.structure(state[0].mu) == jax.tree.structure(params["decoder"])
