"""For users of `flax.nnx`: the linen model as an NNX module."""

from typing import TYPE_CHECKING, Any

from flax_vae.autoencoder import AutoEncoder, example_inputs

if TYPE_CHECKING:
    from flax import nnx


def to_nnx(model: AutoEncoder, params: dict[str, Any], *, seed: int = 0) -> "nnx.Module":
    """Returns an NNX module that holds `params` and computes what `model` does.

    Methods are chosen as in linen: `module(images, sample=False, method="encode")`.

    Args:
      model: the linen model.
      params: its parameters.
      seed: of the rng stream `"sample"`, from which latents are drawn where no noise is given.

    Source: `flax.nnx.bridge.ToNNX`.
    """
    from flax import nnx  # it loads optax, which encoding and decoding do not need
    from flax.nnx import bridge

    images, time = example_inputs(model)

    def wrap() -> bridge.ToNNX:
        return bridge.ToNNX(model, rngs=nnx.Rngs(params=seed, sample=seed))

    # Of an initialised model only the structure is needed: under eval_shape nothing is computed or allocated for it.
    structure = nnx.eval_shape(lambda: bridge.lazy_init(wrap(), images, time, sample=False))
    graph, weights, _ = nnx.split(structure, nnx.Param, ...)
    nnx.replace_by_pure_dict(weights, params)
    module = nnx.merge(graph, weights, nnx.state(wrap()))
    assert isinstance(module, nnx.Module)  # merge may also return functions
    return module
