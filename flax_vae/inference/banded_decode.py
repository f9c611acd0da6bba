"""Decodes large images band by band on one device in bounded memory; the result equals that of decoding at once.

Independent tiles show seams: at the edge of a tile, convolutions pad with zeros instead of the neighbouring pixels, and
normalisations use only the tile's statistics.  Here feature maps are in host memory, and the device holds a band of
rows:

* a band includes the rows around it that its convolutions reach (`flax_vae.inference.band_ops`);
* normalisations use the statistics of the whole map, computed by a pass over its bands;
* rows of a map are released as soon as no later band needs them, so that one map is in memory instead of two;
* intermediate results of blocks and upsampled maps are recomputed instead of stored; for FLUX.1 at 1024 x 1024 the
  upsampled map would take 1 GB.

Shapes: `b` batch, `h w` height and width, `c` channels, `t` width of the time embedding.
"""

import mmap
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.typing import Dtype
from jaxtyping import Array, Float

from flax_vae.autoencoder import AutoEncoder, Model
from flax_vae.convert.architecture import NORM_GROUPS, PaddingMode, check_latent
from flax_vae.convert.errors import ArgumentError
from flax_vae.inference.band_ops import (
    AddTime,
    BandAdd,
    BandAttention,
    BandConv,
    BandNorm,
    BandOp,
    BandUpsample,
    BandWeights,
    reach_of,
    run_ops,
)


@dataclass
class Map:
    """A feature map in host memory, or only its statistics.

    Attributes:
      height: Number of rows.
      width: Number of columns.
      bands: Bands of rows, `n w c`, by the index of their first row; empty if only statistics are kept.
      mean: Mean of each row and channel.
      deviation: Sum of squared deviations from that mean.
    """

    height: int
    width: int
    bands: dict[int, Float[np.ndarray, "n w c"]]
    mean: Float[np.ndarray, "h c"]
    deviation: Float[np.ndarray, "h c"]

    def rows(self, first: int, last: int) -> Float[np.ndarray, "n w c"]:
        """Returns rows `first` to `last` (exclusive), with zeros outside the map."""
        inside = [b[max(first - row, 0) : max(last - row, 0)] for row, b in self.bands.items()]
        above, below = (
            np.zeros_like(inside[0], shape=(max(n, 0), *inside[0].shape[1:])) for n in (-first, last - self.height)
        )
        return np.concatenate([above, *inside, below])

    def drop_rows_above(self, row: int) -> None:
        """Releases the bands that end above `row`."""
        self.bands = {first: band for first, band in self.bands.items() if first + len(band) > row}

    def whole(self) -> Float[np.ndarray, "h w c"]:
        """Returns all rows."""
        return np.concatenate(list(self.bands.values()))

    @np.errstate(over="ignore", invalid="ignore")  # as on a device, NaN and infinity propagate into the image
    def statistics(self) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """Returns mean and variance of each channel's group over all rows.

        The statistics of rows are combined in float64 by the update of Chan, Golub and LeVeque (1979), because
        E[x²] - E[x]² loses digits if the mean is large.
        """
        mean, deviation = (
            rearrange(x.astype(np.float64), "h (g c) -> g (h c)", g=NORM_GROUPS) for x in (self.mean, self.deviation)
        )
        whole = mean.mean(1)
        variance = (deviation.sum(1) / self.width + np.square(mean - whole[:, None]).sum(1)) / mean.shape[1]
        group, dtype = self.mean.shape[1] // NORM_GROUPS, self.mean.dtype
        return jnp.asarray(whole.repeat(group), dtype), jnp.asarray(variance.repeat(group), dtype)


def _kept(x: np.ndarray) -> np.ndarray:
    """Returns a copy in separately mapped memory.

    It is returned to the operating system with the copy; on the heap, released bands would leave fragments.
    """
    copy = np.frombuffer(mmap.mmap(-1, x.nbytes), x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


def _run_pass(
    source: Map, steps: tuple[BandOp, ...], band_rows: int, *, keep: bool = True, consume: bool = True
) -> Map:
    """Applies operations to a map, band by band.

    Args:
      source: Input map.
      steps: Operations, in order.
      band_rows: Maximum number of rows of a band at its highest resolution.
      keep: Whether to keep the result, instead of its statistics only.
      consume: Whether to release rows of the source that are no longer needed.
    """
    scale = 2 if any(isinstance(step, BandUpsample) for step in steps) else 1
    rows = -(-source.height // -(-source.height // max(band_rows // scale, 1)))  # equally many bands, of more even size
    reach = reach_of(steps)
    bands, means, deviations = {}, [], []
    for start in range(0, source.height, rows):
        first, last = start - reach, start + rows + reach
        y, mean, deviation = run_ops(
            steps, source.rows(first, last), np.int32(first), height=source.height, rows=rows, keep=keep
        )
        inside = scale * min(rows, source.height - start)  # the last band may extend beyond the map
        means.append(np.asarray(mean)[:inside])
        deviations.append(np.asarray(deviation)[:inside])
        if y is not None:
            bands[scale * start] = _kept(np.asarray(y)[:inside])
            if consume:
                source.drop_rows_above(start + rows - reach)
    size = (scale * source.height, scale * source.width)
    return Map(*size, bands, np.concatenate(means), np.concatenate(deviations))


# ---------------------------------------------------------------------------------------------------- the decoder


@dataclass(frozen=True)
class _Decoding:
    """Blocks of the decoder as passes over the map of one image; `head` are operations between map and block."""

    time_emb: Float[Array, " t"] | None
    dtype: Dtype | None
    band_rows: int
    padding_mode: PaddingMode

    def conv(self, weights: BandWeights) -> BandConv:
        return BandConv(weights, self.dtype, self.padding_mode)

    def norm(self, weights: BandWeights, source: Map, activate: bool = True) -> BandNorm:
        return BandNorm(weights, *source.statistics(), self.dtype, activate)

    def resnet(self, weights: BandWeights, x: Map, head: tuple[BandOp, ...] = ()) -> Map:
        """Applies a `flax_vae.layers.ResnetBlock`; computes its first half twice, also for the second norm."""
        inner = _run_pass(x, head, self.band_rows, keep=False) if head else x
        opening: tuple[BandOp, ...] = (self.norm(weights["norm1"], inner), self.conv(weights["conv1"]))
        if self.time_emb is not None:
            opening += (AddTime(weights["time_mlp"], self.time_emb, self.dtype),)
        inner = _run_pass(x, head + opening, self.band_rows, keep=False)
        branch = (*opening, self.norm(weights["norm2"], inner), self.conv(weights["conv2"]))
        shortcut = (self.conv(weights["nin_shortcut"]),) if "nin_shortcut" in weights else ()
        return _run_pass(x, (*head, BandAdd(branch, shortcut)), self.band_rows)

    def attend(self, weights: BandWeights, x: Map) -> Map:
        """Applies a `flax_vae.layers.AttnBlock`; the device holds all keys and values of the map."""
        norm = self.norm(weights["norm"], x, activate=False)
        maps = (_run_pass(x, (norm, self.conv(weights[name])), self.band_rows, consume=False) for name in "kv")
        k, v = (rearrange(jnp.asarray(y.whole()), "h w c -> 1 (h w) c") for y in maps)
        branch = (norm, BandAttention(self.conv(weights["q"]), k, v), self.conv(weights["proj_out"]))
        return _run_pass(x, (BandAdd(branch),), self.band_rows)

    def decode(self, params: BandWeights, z: Float[np.ndarray, "h w z"]) -> np.ndarray:
        """Applies a `flax_vae.coders.Decoder`, after the convolution that precedes it if there is one."""
        weights = params["decoder"]
        head: tuple[BandOp, ...] = (self.conv(weights["conv_in"]),)
        if "post_quant_conv" in params:
            head = (self.conv(params["post_quant_conv"]), *head)
        x = Map(z.shape[0], z.shape[1], {0: z}, np.empty(0), np.empty(0))  # no norm uses its statistics
        # middle
        x = self.resnet(weights["mid"]["block_1"], x, head)
        if "attn_1" in weights["mid"]:
            x = self.attend(weights["mid"]["attn_1"], x)
        x = self.resnet(weights["mid"]["block_2"], x)
        # upsampling
        head = ()
        for level in reversed(range(sum(name.startswith("up_") for name in weights))):
            up = weights[f"up_{level}"]
            for block in range(sum(name.startswith("block_") for name in up)):
                x = self.resnet(up[f"block_{block}"], x, head)
                if f"attn_{block}" in up:
                    x = self.attend(up[f"attn_{block}"], x)
                head = ()
            if "upsample" in up:
                head = (BandUpsample(up["upsample"]["conv"], self.dtype, self.padding_mode),)
        # end
        closing = (self.norm(weights["norm_out"], x), self.conv(weights["conv_out"]))
        return _run_pass(x, closing, self.band_rows).whole()


def decode_in_bands(
    model: Model,
    params: BandWeights,
    z: Float[Array | np.ndarray, "b h w c"],
    time: Float[Array | np.ndarray, "b ..."] | None = None,
    *,
    band_rows: int = 16,
) -> Float[np.ndarray, "b h*f w*f c"]:
    """Decodes scaled latents in bounded memory; equals `AutoEncoder.decode` up to rounding.

    The images of a batch are decoded one after another.  The host holds one feature map of the current level, with `ch`
    values per pixel at the last; the device holds the decoder's weights, a few bands, and keys and values of attention.
    Decoding takes up to twice as long as at once.  A tiny autoencoder, whose maps are small, decodes an image at once.

    Args:
      model: Autoencoder.
      params: Parameters of the model; those of the encoder may be missing.
      z: Scaled latents.
      time: Time of each image; see `AutoEncoder`.
      band_rows: Number of rows that the device computes at a time, at every level; fewer need less memory and more
        time.

    Returns:
      Images in host memory, nominally in [-1, 1], float32, or float64 if the model computes in it.

    Example:
      >>> model = AutoEncoder(PRESETS["tiny"])
      >>> params = init_params(model, jax.random.key(0))
      >>> decode_in_bands(model, params, np.zeros((1, 32, 32, 16))).shape
      (1, 128, 128, 3)

    Raises:
      ValueError: If the channels are wrong, `time` is missing, not supported or has a wrong shape, or `band_rows` is
        not positive.
    """
    if band_rows < 1:
        raise ArgumentError(
            f"band_rows={band_rows} must be positive; 16 suits most machines", field="band_rows", value=band_rows
        )
    z = jnp.asarray(z)
    if not isinstance(model, AutoEncoder):
        at_once = [model.apply({"params": params}, z[i : i + 1], time, method="decode") for i in range(len(z))]
        decoded = np.concatenate([np.asarray(image) for image in at_once])
        return decoded.astype(jnp.promote_types(decoded.dtype, jnp.float32))
    time_emb = model.apply({"params": params}, time, z.shape[0], method="embed_time")
    raw = np.asarray(model.apply({"params": params}, z, method="unscale"))
    check_latent(model.params.z_channels, raw, "b h w c", least=model.params.least_side)
    images = []
    for index in range(len(raw)):
        row = None if time_emb is None else jnp.asarray(time_emb)[index]
        decoding = _Decoding(row, model.dtype, band_rows, model.params.padding_mode)
        image = decoding.decode(params, raw[index])
        images.append(image.astype(jnp.promote_types(image.dtype, jnp.float32)))
    return np.stack(images)
