"""What both frameworks ask of a call's arguments, in one wording.

They look at shapes alone, which every array has, so the two models refuse the same things with the same sentence.
"""

from convert.architecture import AutoEncoderParams

Shape = tuple[int, ...]


def check_image(params: AutoEncoderParams, shape: Shape, axes: str, *, moments_only: bool = False) -> None:
    """Refuses an image that the encoder would silently crop or that has the wrong channels.

    Args:
      params: the architecture.
      shape: of the batch of images.
      axes: their names in order, `"b h w c"` or `"b c h w"`.
      moments_only: whether the latent need not fall into whole patches, because it stays raw.

    Raises:
      ValueError: naming the value, what was expected and the remedy.
    """
    size = _name_axes(shape, axes, "images")
    if size["c"] != params.in_channels:
        raise ValueError(
            f"images of shape {shape} have {size['c']} channels as {axes!r}, the model takes {params.in_channels}"
        )
    f = params.factor // params.patch if moments_only else params.factor
    if any(size[side] % f or not size[side] for side in "hw"):
        padded = " x ".join(str(max(-(-size[side] // f), 1) * f) for side in "hw")
        raise ValueError(
            f"images are {size['h']} x {size['w']} (height x width), the model takes positive multiples of {f}; "
            f"pad them to {padded}, or crop"
        )


def check_latent(channels: int, shape: Shape, axes: str) -> None:
    """Refuses a latent of another width than `channels`.

    Raises:
      ValueError: naming both widths.
    """
    size = _name_axes(shape, axes, "latents")
    if size["c"] != channels:
        raise ValueError(
            f"latents of shape {shape} have {size['c']} channels as {axes!r}, the decoder takes {channels}"
        )


def check_time(params: AutoEncoderParams, shape: Shape | None, batch: int) -> None:
    """Refuses a missing, superfluous or misshapen `time`; `shape` is None where no time was given.

    Raises:
      ValueError: saying what the model takes.
    """
    if params.time_emb_dim is None:
        if shape is not None:
            raise ValueError("this model has no time embedding (time_emb_dim is None); call it without time")
        return
    expected = (batch, params.time_emb_dim) if params.time_embedding == "linear" else (batch,)
    if shape is None:
        raise ValueError(
            f"this model is conditioned on time (time_emb_dim={params.time_emb_dim}); pass time of shape {expected}"
        )
    if shape != expected:
        raise ValueError(
            f"time has shape {shape}; the {params.time_embedding!r} time embedding of this batch takes {expected}"
        )


def check_time_emb(time_emb_dim: int | None, shape: Shape | None) -> None:
    """Refuses a missing, superfluous or misshapen time embedding at a single block.

    Raises:
      ValueError: saying what the block takes.
    """
    if time_emb_dim is None:
        if shape is not None:
            raise ValueError("this block has no time_mlp (time_emb_dim is None); call it without time_emb")
    elif shape is None:
        raise ValueError(f"this block takes a time embedding (time_emb_dim={time_emb_dim}); pass time_emb")
    elif len(shape) != 2 or shape[1] != time_emb_dim:
        raise ValueError(f"time_emb has shape {shape}; this block takes (b, {time_emb_dim})")


def check_noise(noise: Shape | None, sample: bool, latent: Shape) -> None:
    """Refuses noise that would be ignored or broadcast; `noise` is None where none was given.

    Raises:
      ValueError: naming the shapes.
    """
    if noise is None:
        return
    if not sample:
        raise ValueError("noise is given but sample=False draws nothing; leave out one of the two")
    if noise != latent:
        raise ValueError(f"noise has shape {noise}, the latent {latent}; they must be equal")


def _name_axes(shape: Shape, axes: str, what: str) -> dict[str, int]:
    names = axes.split()
    if len(shape) != len(names):
        raise ValueError(f"{what} have shape {shape}, which is no {axes!r}; give all {len(names)} axes")
    return dict(zip(names, shape, strict=True))
