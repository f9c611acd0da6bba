"""Wraps the linen model as an NNX module, for users of `flax.nnx`."""

from typing import TYPE_CHECKING, Any

from flax_vae.autoencoder import Model, example_inputs

if TYPE_CHECKING:
    from flax import nnx


def to_nnx(model: Model, params: dict[str, Any], *, seed: int = 0) -> "nnx.Module":
    """Returns an NNX module that holds `params` and computes the outputs of `model`.

    Methods are chosen as in linen: `module(images, sample=False, method="encode")`.

    Args:
      model: Linen model.
      params: Parameters of the model.
      seed: Seed of the rng stream `"sample"`, from which latents are sampled if no noise is given.

    Examples:
      >>> from flax import nnx
      >>> model = AutoEncoder(PRESETS["tiny"])
      >>> module = to_nnx(model, init_params(model, jax.random.key(0)))
      >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))
      3620579

    Source: `flax.nnx.bridge.ToNNX`.
    """
    from flax import nnx  # loads optax, which encoding and decoding do not need
    from flax.nnx import bridge

    images, time = example_inputs(model)

    def wrap() -> bridge.ToNNX:
        return bridge.ToNNX(model, rngs=nnx.Rngs(params=seed, sample=seed))

    # Only the structure of an initialised model is needed; eval_shape computes and allocates nothing.
    structure = nnx.eval_shape(lambda: bridge.lazy_init(wrap(), images, time, sample=False))
    graph, weights, _ = nnx.split(structure, nnx.Param, ...)
    nnx.replace_by_pure_dict(weights, params)
    module = nnx.merge(graph, weights, nnx.state(wrap()))
    assert isinstance(module, nnx.Module)  # merge may also return functions
    return module
