"""Argument checks shared by the Flax and PyTorch models, so both raise the same errors.

They read only shapes and dtype names, which arrays of both frameworks have.
"""

from collections.abc import Iterable
from typing import Any

from flax_vae.convert.architecture.tiny_autoencoder import Architecture
from flax_vae.convert.errors import ArgumentError
from flax_vae.convert.formats import FLOATS, dtype_name, is_floating

Shape = tuple[int, ...]

SCALE_PIXELS = "scale pixels from 0 to 255 to [-1, 1] with images / 127.5 - 1"


def check_image(params: Architecture, images: Any, axes: str, *, moments_only: bool = False) -> None:
    """Checks that the encoder can take a batch of images: axes, channels, size, dtype.

    Args:
      params: Architecture of the model.
      images: Batch of images, an array or a tensor.
      axes: Names of the axes in order, `"b h w c"` or `"b c h w"`.
      moments_only: Whether the latent stays raw, so that it need not divide into whole patches.

    Raises:
      ValueError: Names the value, the expected one and the remedy.
    """
    shape = tuple(images.shape)
    size = _name_axes(shape, axes, "images")
    check_numbers(images, "images", SCALE_PIXELS)
    if size["c"] != params.in_channels:
        raise ArgumentError(
            f"images of shape {shape} have {size['c']} channels as {axes!r}; expected {params.in_channels}"
        )
    f = params.factor // params.patch if moments_only else params.factor
    least = params.least_side * f if moments_only else params.least_image
    if any(size[side] % f or size[side] < least for side in "hw"):
        padded = " x ".join(str(max(-(-size[side] // f) * f, least)) for side in "hw")
        expected = f"positive multiples of {f}" if least == f else f"multiples of {f} from {least} on"
        raise ArgumentError(
            f"images are {size['h']} x {size['w']} (height x width); expected {expected}; pad them to {padded}, or crop"
        )


def check_latent(channels: int, latents: Any, axes: str, *, least: int = 0) -> None:
    """Checks that the decoder can take a batch of latents: axes, channels, size, dtype.

    Args:
      channels: Number of channels of the latent that the decoder takes.
      latents: Batch of latents, an array or a tensor.
      axes: Names of the axes in order, `"b h w c"` or `"b c h w"`.
      least: Least height and width, `AutoEncoderParams.least_side` for a raw latent.

    Raises:
      ValueError: Names the value, the expected one and the remedy.
    """
    shape = tuple(latents.shape)
    size = _name_axes(shape, axes, "latents")
    check_numbers(latents, "latents", "pass what encode returns, or cast them to float32")
    if size["c"] != channels:
        raise ArgumentError(f"latents of shape {shape} have {size['c']} channels as {axes!r}; expected {channels}")
    if min(size["h"], size["w"]) < least:
        raise ArgumentError(
            f"latents are {size['h']} x {size['w']} (height x width); expected at least {least} x {least}, because "
            "padding_mode='reflect' repeats the pixel beside the edge; encode larger images"
        )


def check_time(params: Architecture, time: Any | None, batch: int) -> None:
    """Checks that `time` is given exactly if the model takes it, with the right shape and a floating dtype.

    Args:
      params: Architecture of the model.
      time: Array or tensor, or None if no time was passed.
      batch: Number of images or latents.

    Raises:
      ValueError: Names what the model takes.
    """
    if params.time_emb_dim is None:
        if time is not None:
            raise ArgumentError("this model has no time embedding (time_emb_dim is None); call it without time")
        return
    expected = (batch, params.time_emb_dim) if params.time_embedding == "linear" else (batch,)
    if time is None:
        raise ArgumentError(
            f"this model is conditioned on time (time_emb_dim={params.time_emb_dim}); pass time of shape {expected}"
        )
    shape = tuple(time.shape)
    if shape != expected:
        raise ArgumentError(
            f"time has shape {shape}; the {params.time_embedding!r} time embedding of this batch expects {expected}"
        )
    check_numbers(time, "times", "cast them to float32")


def check_time_emb(time_emb_dim: int | None, shape: Shape | None) -> None:
    """Checks that a block receives a time embedding exactly if it takes one, with the right shape.

    Args:
      time_emb_dim: Width of the embedding that the block takes; None if it takes none.
      shape: Shape of the embedding; None if none was passed.

    Raises:
      ValueError: Names what the block takes.
    """
    if time_emb_dim is None:
        if shape is not None:
            raise ArgumentError("this block has no time_mlp (time_emb_dim is None); call it without time_emb")
    elif shape is None:
        raise ArgumentError(f"this block takes a time embedding (time_emb_dim={time_emb_dim}); pass time_emb")
    elif len(shape) != 2 or shape[1] != time_emb_dim:
        raise ArgumentError(f"time_emb has shape {shape}; expected (b, {time_emb_dim})")


def check_noise(noise: Shape | None, sample: bool, latent: Shape) -> None:
    """Checks that noise is used and has the latent's shape; `noise` is None if none was passed.

    Args:
      noise: Shape of the noise; None if none was passed.
      sample: Whether the latent is sampled.
      latent: Shape of the latent.

    Raises:
      ValueError: Names the shapes.
    """
    if noise is None:
        return
    if not sample:
        raise ArgumentError("noise is given but sample=False does not sample; leave out one of the two")
    if noise != latent:
        raise ArgumentError(f"noise has shape {noise}, the latent {latent}; they must be equal")


def check_no_sample(sample: bool, noise: Any | None) -> None:
    """Checks that no sample is asked for of a model without a posterior.

    Args:
      sample: Whether a sample is asked for.
      noise: Noise of the sample, or None.

    Raises:
      ValueError: If it is.
    """
    if sample or noise is not None:
        raise ArgumentError(
            "a tiny autoencoder has no posterior to sample from, its encoder gives the latent itself; pass "
            "sample=False and no noise"
        )


def check_weights(tensors: Iterable[Any], option: str) -> None:
    """Checks that models can compute with the dtypes of the weights; some dtypes only store values.

    Args:
      tensors: Weights as read from the file.
      option: Name of the caller's argument that chooses another dtype.

    Raises:
      ValueError: Names the dtypes and the option.
    """
    others = sorted({dtype_name(t) for t in tensors if is_floating(t)} - FLOATS.keys())
    if others:
        raise ArgumentError(
            f"the weights are {' and '.join(others)}, which models cannot compute with; choose {option}, for example "
            "float32 or bfloat16"
        )


def check_numbers(array: Any, what: str, remedy: str) -> None:
    """Checks that a batch is not empty and has a floating dtype that supports arithmetic.

    Raises:
      ValueError: Names the dtype or the shape, the expected one and the remedy.
    """
    if dtype_name(array) not in FLOATS:
        raise ArgumentError(f"{what} are {dtype_name(array)}; expected {', '.join(FLOATS)}; {remedy}")
    if not array.shape[0]:
        raise ArgumentError(
            f"{what} have shape {tuple(array.shape)}; expected a batch of at least one; skip empty batches"
        )


def _name_axes(shape: Shape, axes: str, what: str) -> dict[str, int]:
    names = axes.split()
    if len(shape) != len(names):
        raise ArgumentError(f"{what} have shape {shape}; expected {axes!r}; pass all {len(names)} axes")
    return dict(zip(names, shape, strict=True))
