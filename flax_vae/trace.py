"""Writes the output of every layer for one image: `python -m flax_vae.trace MODEL PICTURE OUT.npz`.

`torch_ref.trace` is the twin.  Arrays have equal names and shapes in both, so that two files can be compared by layer.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flax_vae.autoencoder import Model
from flax_vae.convert.architecture import Architecture
from flax_vae.convert.console import TraceFlags, trace_command
from flax_vae.convert.table import expand, flatten
from flax_vae.images import read_model_input
from flax_vae.loading import from_pretrained


def trace(
    model: Model,
    params: dict[str, Any],
    images: Float[Array, "b h w c"],
    time: Float[Array, "b ..."] | None = None,
    noise: Float[Array, "b H W z"] | None = None,
) -> dict[str, np.ndarray]:
    """Returns the output of every layer that has weights, then the latents and the reconstructions.

    Args:
      model: Model to run.
      params: Parameters of the model.
      images: Images in [-1, 1].
      time: Time condition; see `AutoEncoder`.
      noise: Standard normal noise for the latents; None takes the mean of the posterior.

    Returns:
      Arrays `b c h w` by the names of the layers in PyTorch's state dict; `"latents"`; `"images"`.
    """
    names = {row.ours.rpartition("/")[0]: row.theirs.rpartition(".")[0] for row in expand(model.params)}

    def reconstruct(model: Model) -> tuple[Array, Array]:
        latents = model.encode(images, time, sample=noise is not None, noise=noise)
        return latents, model.decode(latents, time)

    (latents, decoded), state = model.apply(
        {"params": params}, method=reconstruct, capture_intermediates=True, mutable=["intermediates"]
    )
    outputs = {path.removesuffix("/__call__"): calls[0] for path, calls in flatten(state["intermediates"]).items()}
    layers = {names[path]: _channels_first(output) for path, output in outputs.items() if path in names}
    return {**layers, "latents": _channels_first(latents), "images": _channels_first(decoded)}


def zero_time(params: Architecture, dtype: str = "float32") -> Float[Array, "1 ..."] | None:
    """Returns a time condition of zeros for one image, or None for a model without one."""
    if params.time_emb_dim is None:
        return None
    return jnp.zeros((1, params.time_emb_dim) if params.time_embedding == "linear" else (1,), dtype)


def write_trace(flags: TraceFlags) -> None:
    """Runs the model on the image and writes the arrays of `trace`, and the `"device"` that computed them.

    Raises:
      ConversionError, FileError, OSError: As for `from_pretrained`, and if the image cannot be read or is too small.
    """
    for dtype, out in flags.outputs().items():
        with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
            model, params = from_pretrained(
                flags.model,
                flags.weights.preset,
                param_dtype=jnp.dtype(dtype),
                raw_weights=flags.weights.raw_weights,
                variant=flags.weights.variant,
                prefix=flags.weights.prefix,
            )
            images = jnp.asarray(read_model_input(flags.picture, model.params), dtype)
            arrays = trace(model, params, images, zero_time(model.params, dtype))
        device = jax.devices()[0]
        np.savez(out, **arrays, device=f"{device.platform} ({device.device_kind})")  # pyright: ignore[reportArgumentType]


def _channels_first(array: Array) -> np.ndarray:
    """Returns a map in PyTorch's order of axes, and a vector unchanged."""
    return np.asarray(array).transpose(0, 3, 1, 2) if array.ndim == 4 else np.asarray(array)


if __name__ == "__main__":
    sys.exit(trace_command("flax_vae.trace", write_trace))
