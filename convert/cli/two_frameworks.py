"""One picture through the Flax and the PyTorch model, layer beside layer: `flax-vae-convert verify --run`.

The only file of this package that needs the frameworks; nothing imports it but that command, when it is asked for.
Both models run once with all their layers watched.  The table of weights says which layer of one is which of the
other, and PyTorch says in which order they ran.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import flax_vae
from flax_vae.convert.errors import ConversionError, FileError
from flax_vae.convert.extras import needed
from flax_vae.convert.formats import cast
from flax_vae.convert.table import Weights, expand, flatten, to_flax
from flax_vae.errors import DataError
from flax_vae.images import read_image

with needed("running both frameworks needs PyTorch", "torch", raises=ConversionError):
    import torch

    import torch_ref
    from torch_ref.loading import to_tensor

# In float32 rounding reaches about 1e-5 of a layer's RMS at published dimensions; a wrong weight shows from 1e-2 on.
TOLERANCE = 1e-3

# The layers of one block: they are one row of the report.
_INNER = {"norm1", "conv1", "time_mlp", "norm2", "conv2", "nin_shortcut", "norm", "q", "k", "v", "proj_out"}


class Drift(NamedTuple):
    """How far the two models are apart, in units of the RMS of PyTorch's.

    Attributes:
      size: height and width of the picture that was used.
      outputs: of the latents and the images.
      blocks: behind each block, in the order of execution; the largest of its layers.
      first: the first layer that is further apart than `TOLERANCE`, or None.
    """

    size: tuple[int, int]
    outputs: dict[str, float]
    blocks: dict[str, float]
    first: str | None


def run_both(flax_weights: Weights, torch_weights: Weights, picture: str | os.PathLike[str]) -> Drift:
    """Sends a picture through both, in float32 whatever the weights' dtype; the latent is the posterior's mean.

    Raises:
      ConversionError: If the two are of different architectures.
      FileError: If the picture cannot be read, or is too small.
    """
    params = flax_weights.params
    if params.differences(torch_weights.params):
        raise ConversionError("the two are of different architectures, so that no layer of one is a layer of the other")
    images = _read_picture(picture, params.factor, params.in_channels)
    time = None
    if params.time_emb_dim is not None:
        time = np.zeros((1, params.time_emb_dim) if params.time_embedding == "linear" else 1, np.float32)
    tree = to_flax(cast(flax_weights.tensors, "float32"), params, flax_weights.layout)
    tree = jax.tree.map(lambda leaf: jnp.array(np.asarray(leaf), copy=True), tree)
    with torch.device("meta"):
        twin = torch_ref.AutoEncoder(params)
    state_dict = cast(torch_weights.to("flux"), "float32")
    twin.load_state_dict({key: to_tensor(t) for key, t in state_dict.items()}, strict=True, assign=True)
    raw = params.factor // params.patch
    # No noise times the deviation is the mean, and goes the way through both models that hooks can watch.
    noise = np.zeros((1, images.shape[1] // raw, images.shape[2] // raw, params.z_channels), np.float32)
    model = flax_vae.AutoEncoder(params)
    with jax.default_matmul_precision("highest"):
        layers, apart_in_images = trace((model, tree), twin, images, time, noise)
        latents = model.apply({"params": tree}, images, time, noise=noise, method="encode")
    with torch.no_grad():
        expected = twin.encode(nchw(images), nchw(time), noise=nchw(noise))
    blocks: dict[str, float] = {}
    for name, apart in layers:
        block, _, layer = name.rpartition(".")
        block = block if layer in _INNER else name
        blocks[block] = max(blocks.get(block, 0.0), apart)
    first = next((name for name, apart in layers if not apart <= TOLERANCE), None)
    return Drift(
        images.shape[1:3], {"latents": difference(latents, nhwc(expected)), "images": apart_in_images}, blocks, first
    )


def trace(flax_pair: tuple[Any, Any], torch_model: Any, images: Any, time: Any, noise: Any):
    """Returns what `layer_differences` does, and how far the images that come out are apart."""
    model, tree = flax_pair
    images_out, state = model.apply(
        {"params": tree}, images, time, noise=noise, capture_intermediates=True, mutable=["intermediates"]
    )
    ours = {path.removesuffix("/__call__"): out[0] for path, out in flatten(state["intermediates"]).items()}

    theirs, hooks = {}, []
    for name, layer in torch_model.named_modules():

        def keep(_, __, output, name=name):
            theirs[name] = output

        hooks.append(layer.register_forward_hook(keep))
    try:
        with torch.no_grad():
            expected = torch_model(nchw(images), nchw(time), noise=nchw(noise))
    finally:
        for hook in hooks:
            hook.remove()

    pairs = {row.theirs.rpartition(".")[0]: row.ours.rpartition("/")[0] for row in expand(model.params)}
    layers = [
        (name, difference(ours[pairs[name]], nhwc(output)))
        for name, output in theirs.items()
        if name in pairs and pairs[name] in ours
    ]
    return layers, difference(images_out, nhwc(expected))


def layer_differences(
    flax_pair: tuple[Any, Any], torch_model: Any, images: Any, time: Any, noise: Any
) -> list[tuple[str, float]]:
    """Every layer that has weights, in the order of execution, and how far the two frameworks are apart behind it.

    Args:
      flax_pair: the Flax model and its parameters.
      torch_model: its twin.
      images: `b h w c`.
      time: where the models take one, otherwise None.
      noise: `b h w c`, to draw the latent with.
    """
    return trace(flax_pair, torch_model, images, time, noise)[0]


def first_difference(
    flax_pair: tuple[Any, Any], torch_model: Any, images: Any, time: Any, noise: Any, tolerance: float
) -> str:
    """One sentence that says which layer is the first to disagree; arguments as for `layer_differences`."""
    layers = layer_differences(flax_pair, torch_model, images, time, noise)
    for name, apart in layers:
        if not apart <= tolerance:
            return f"the first submodule that disagrees is {name} ({apart:.3g} of its RMS)"
    return f"each of the {len(layers)} submodules agrees; look at what stands between them"


def difference(ours: Any, theirs: Any) -> float:
    """The largest absolute difference, in units of the RMS of `theirs`; NaN if anything is not finite.

    Raises:
      AssertionError: If the shapes differ.
    """
    ours, theirs = np.asarray(ours).astype(np.float64), np.asarray(theirs).astype(np.float64)
    assert ours.shape == theirs.shape, f"shapes differ: {ours.shape} and {theirs.shape}"
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        apart = np.abs(ours - theirs).max()
        return float(apart / np.sqrt(np.mean(theirs**2))) if apart else 0.0


def nchw(array: Any) -> Any:
    """A Flax map as a torch tensor; vectors, and None, are left as they are."""
    if array is None:
        return None
    array = np.asarray(array)
    return to_tensor(array.transpose(0, 3, 1, 2) if array.ndim == 4 else array)


def nhwc(tensor: Any) -> np.ndarray:
    """A torch map as float64 in Flax's order."""
    array = tensor.detach().double().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def _read_picture(path: str | os.PathLike[str], factor: int, channels: int) -> np.ndarray:
    """The picture in [-1, 1], without the last rows and columns that make no whole latent."""
    try:
        picture = Image.fromarray(read_image(Path(path)))
    except DataError as error:
        raise FileError(str(error)) from error
    pixels = np.asarray(picture.convert("L") if channels == 1 else picture, np.float32) / 127.5 - 1
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    height, width = (side // factor * factor for side in pixels.shape[:2])
    if not height or not width or pixels.shape[2] != channels:
        raise FileError(
            f"{path} is {pixels.shape[0]} x {pixels.shape[1]} x {pixels.shape[2]}; the model takes {channels} channels "
            f"and sides of at least {factor}"
        )
    return pixels[None, :height, :width]
