"""Writes the output of every layer for one image: `python -m torch_ref.trace MODEL PICTURE OUT.npz`.

`flax_vae.trace` is the twin.  Arrays have equal names and shapes in both, so that two files can be compared by layer.
"""

import sys
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module

from flax_vae.convert.architecture import Architecture
from flax_vae.convert.console import TraceFlags, trace_command
from flax_vae.convert.formats import to_array
from flax_vae.convert.table import expand
from flax_vae.images import read_model_input
from torch_ref.autoencoder import Model
from torch_ref.loading import from_pretrained, to_tensor


def trace(
    model: Model,
    images: Float[Tensor, "b c h w"],
    time: Float[Tensor, "b ..."] | None = None,
    noise: Float[Tensor, "b z H W"] | None = None,
) -> dict[str, np.ndarray]:
    """Returns the output of every layer that has weights, then the latents and the reconstructions.

    Args:
      model: Model to run.
      images: Images in [-1, 1].
      time: Time condition; see `AutoEncoder`.
      noise: Standard normal noise for the latents; None takes the mean of the posterior.

    Returns:
      Arrays `b c h w` by the names of the layers in the state dict, in order of execution; `"latents"`; `"images"`.
    """
    names = {row.theirs.rpartition(".")[0] for row in expand(model.params)}
    layers: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable[[Module, tuple[Tensor, ...], Tensor], None]:
        return lambda layer, inputs, output: layers.update({name: to_array(output)})

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        with torch.no_grad():
            latents = model.encode(images, time, sample=noise is not None, noise=noise)
            decoded = model.decode(latents, time)
    finally:
        for hook in hooks:
            hook.remove()
    return {**layers, "latents": to_array(latents), "images": to_array(decoded)}


def zero_time(params: Architecture, dtype: torch.dtype = torch.float32) -> Float[Tensor, "1 ..."] | None:
    """Returns a time condition of zeros for one image, or None for a model without one."""
    if params.time_emb_dim is None:
        return None
    return torch.zeros((1, params.time_emb_dim) if params.time_embedding == "linear" else (1,), dtype=dtype)


def write_trace(flags: TraceFlags) -> None:
    """Runs the model on the image and writes the arrays of `trace`, and the `"device"` that computed them.

    Raises:
      ConversionError, FileError, OSError: As for `from_pretrained`, and if the image cannot be read or is too small.
    """
    for name, out in flags.outputs().items():
        dtype = getattr(torch, name)
        model = from_pretrained(
            flags.model,
            flags.weights.preset,
            dtype=dtype,
            raw_weights=flags.weights.raw_weights,
            variant=flags.weights.variant,
            prefix=flags.weights.prefix,
        )
        images = to_tensor(read_model_input(flags.picture, model.params).transpose(0, 3, 1, 2)).to(dtype)
        arrays = trace(model, images, zero_time(model.params, dtype))
        np.savez(out, **arrays, device=str(images.device))  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    sys.exit(trace_command("torch_ref.trace", write_trace))
