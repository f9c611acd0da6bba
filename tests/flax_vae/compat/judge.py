"""Runs diffusers 0.39 on the models and inputs in a folder: `python judge.py FOLDER`.

Runs in an environment of its own, beside that of the tests, with two devices.  Reads `ours/`, a model that
`flax_vae.compat` saved, and `inputs.npz`; writes `theirs/`, a model that diffusers saved, and `results.npz`.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from diffusers import FlaxAutoencoderKL
from flax.traverse_util import flatten_dict

jax.config.update("jax_disable_most_optimizations", True)


def main(folder: Path) -> None:
    inputs = dict(np.load(folder / "inputs.npz"))
    vae, params = FlaxAutoencoderKL.from_pretrained(folder / "ours")
    results = {f"ours/{name}": leaf for name, leaf in leaves(params).items()}
    results |= answers(vae, params, inputs)

    initial = vae.init_weights(jax.random.key(3))
    results |= {f"initial/{name}": leaf for name, leaf in leaves(initial).items()}
    moved = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), initial)
    vae.save_pretrained(folder / "theirs", params=moved)
    results |= {f"theirs/{name}": leaf for name, leaf in leaves(moved).items()}
    results["config"] = np.array(json.dumps(dict(vae.config), default=str))
    np.savez(folder / "results.npz", **{name: np.asarray(value) for name, value in results.items()})


def leaves(params) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()}


def answers(vae, params, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    def ask(params, images, latents, key):
        posterior = vae.apply({"params": params}, images, method=vae.encode).latent_dist
        other = vae.apply({"params": params}, -images, method=vae.encode).latent_dist
        called = [
            vae.apply({"params": params}, images, sample_posterior=sampled, rngs={"gaussian": key}).sample
            for sampled in (False, True)
        ]
        return {
            "mean": posterior.mean,
            "logvar": posterior.logvar,
            "std": posterior.std,
            "var": posterior.var,
            "sample": posterior.sample(key),
            "mode": posterior.mode(),
            "kl": posterior.kl(),
            "kl of two": posterior.kl(other),
            "nll": posterior.nll(latents),
            "decode": vae.apply({"params": params}, latents, method=vae.decode).sample,
            "call": called[0],
            "sampled call": called[1],
        }

    def loss(params, *arguments):
        found = ask(params, *arguments)
        return jnp.mean(found["sampled call"] ** 2) + jnp.mean(found["kl"]), found

    program = jax.jit(jax.grad(loss, has_aux=True))  # one, since most of the time goes into compiling
    arguments = (inputs["images"], inputs["latents"], jax.random.key(int(inputs["seed"])))
    gradients, found = program(params, *arguments)
    found |= {f"gradient/{name}": leaf for name, leaf in leaves(gradients).items()}
    extreme = {**params, "quant_conv": {**params["quant_conv"], "bias": jnp.asarray(inputs["extreme bias"])}}
    found["limited"] = program(extreme, *arguments)[1]["logvar"]

    assert jax.device_count() == 2

    def each(params, images, latents):
        posterior = vae.apply({"params": params}, images, method=vae.encode).latent_dist
        images = vae.apply({"params": params}, latents, method=vae.decode).sample
        return {"mean": posterior.mean, "std": posterior.std, "decode": images}

    stacked = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), params)  # diffusers commits parameters to one device
    parallel = jax.pmap(each)(stacked, inputs["images"][:, None], inputs["latents"][:, None])
    found |= {f"parallel/{name}": value for name, value in parallel.items()}
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
