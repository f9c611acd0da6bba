"""Decoding band by band: large images on one device in bounded memory, equal to decoding them whole.

Tiles decoded one by one show their seams: at its edge a tile's convolutions see zeros instead of the neighbour, and its
normalisations know nothing but the tile.  Here the maps lie in the host's memory, and the device holds a band of rows:

* a band brings along the rows around it that its convolutions reach (`flax_vae.inference.band_ops`);
* the statistics of a normalisation are those of the whole map, gathered by a pass over its bands;
* the rows of a map are let go as soon as no later band needs them, so that there is one map at a time and not two;
* what can be computed again is never stored: neither the inside of a block nor the upsampled map, which for FLUX.1 at
  1024 x 1024 would take 1 GB.

Shapes: `b` batch, `h w` height and width, `c` channels, `t` width of the time embedding.
"""

import mmap
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.typing import Dtype
from jaxtyping import Array, Float

from flax_vae.autoencoder import AutoEncoder
from flax_vae.convert.architecture import NORM_GROUPS
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
    """A map in the host's memory, `height` rows of `width` columns, or only the statistics of one.

    Attributes:
      bands: its rows, `n w c` at a time, by the number of the first.
      mean: of each row and channel.
      deviation: the sum of squares about that mean.
    """

    height: int
    width: int
    bands: dict[int, Float[np.ndarray, "n w c"]]
    mean: Float[np.ndarray, "h c"]
    deviation: Float[np.ndarray, "h c"]

    def rows(self, first: int, last: int) -> Float[np.ndarray, "n w c"]:
        """Returns rows `first` to `last` (not included), zeros where they lie outside."""
        inside = [b[max(first - row, 0) : max(last - row, 0)] for row, b in self.bands.items()]
        above, below = (
            np.zeros_like(inside[0], shape=(max(n, 0), *inside[0].shape[1:])) for n in (-first, last - self.height)
        )
        return np.concatenate([above, *inside, below])

    def forget(self, row: int) -> None:
        """Lets the bands go that end above `row`."""
        self.bands = {first: band for first, band in self.bands.items() if first + len(band) > row}

    def whole(self) -> Float[np.ndarray, "h w c"]:
        """Returns all rows."""
        return np.concatenate(list(self.bands.values()))

    @np.errstate(over="ignore", invalid="ignore")  # as on a device: NaN and infinity go on into the image
    def statistics(self) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """Returns mean and variance over all rows of every channel's group.

        Rows are put together by the update of Chan, Golub and LeVeque (1979), in float64; E[x²] - E[x]² would lose
        digits wherever the mean is large.
        """
        mean, deviation = (
            rearrange(x.astype(np.float64), "h (g c) -> g (h c)", g=NORM_GROUPS) for x in (self.mean, self.deviation)
        )
        whole = mean.mean(1)
        variance = (deviation.sum(1) / self.width + np.square(mean - whole[:, None]).sum(1)) / mean.shape[1]
        group, dtype = self.mean.shape[1] // NORM_GROUPS, self.mean.dtype
        return jnp.asarray(whole.repeat(group), dtype), jnp.asarray(variance.repeat(group), dtype)


def _kept(x: np.ndarray) -> np.ndarray:
    """Returns a copy in pages of its own.

    They go back to the system when the copy does; between temporary buffers on the heap, bands would leave holes.
    """
    copy = np.frombuffer(mmap.mmap(-1, x.nbytes), x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


def _stream(source: Map, steps: tuple[BandOp, ...], band_rows: int, *, keep: bool = True, consume: bool = True) -> Map:
    """Sends a map through steps, band by band.

    Args:
      source: what goes in.
      steps: what happens to it.
      band_rows: rows of a band where it is finest, at most.
      keep: keep the result, not its statistics alone.
      consume: let the source go while the result grows.
    """
    scale = 2 if any(isinstance(step, BandUpsample) for step in steps) else 1
    rows = -(-source.height // -(-source.height // max(band_rows // scale, 1)))  # as many bands, of more even size
    reach = reach_of(steps)
    bands, means, deviations = {}, [], []
    for start in range(0, source.height, rows):
        first, last = start - reach, start + rows + reach
        y, mean, deviation = run_ops(
            steps, source.rows(first, last), np.int32(first), height=source.height, rows=rows, keep=keep
        )
        inside = scale * min(rows, source.height - start)  # the last band may hang over
        means.append(np.asarray(mean)[:inside])
        deviations.append(np.asarray(deviation)[:inside])
        if y is not None:
            bands[scale * start] = _kept(np.asarray(y)[:inside])
            if consume:
                source.forget(start + rows - reach)
    size = (scale * source.height, scale * source.width)
    return Map(*size, bands, np.concatenate(means), np.concatenate(deviations))


# ---------------------------------------------------------------------------------------------------- the decoder


@dataclass(frozen=True)
class _Decoding:
    """The blocks of the decoder, as passes over a map of one image; `head` is what comes between map and block."""

    time_emb: Float[Array, " t"] | None
    dtype: Dtype | None
    band_rows: int

    def conv(self, weights: BandWeights) -> BandConv:
        return BandConv(weights, self.dtype)

    def norm(self, weights: BandWeights, source: Map, activate: bool = True) -> BandNorm:
        return BandNorm(weights, *source.statistics(), self.dtype, activate)

    def resnet(self, weights: BandWeights, x: Map, head: tuple[BandOp, ...] = ()) -> Map:
        """`flax_vae.layers.ResnetBlock`; its inside is computed twice, for the second norm and for the result."""
        inner = _stream(x, head, self.band_rows, keep=False) if head else x
        opening: tuple[BandOp, ...] = (self.norm(weights["norm1"], inner), self.conv(weights["conv1"]))
        if self.time_emb is not None:
            opening += (AddTime(weights["time_mlp"], self.time_emb, self.dtype),)
        inner = _stream(x, head + opening, self.band_rows, keep=False)
        branch = (*opening, self.norm(weights["norm2"], inner), self.conv(weights["conv2"]))
        shortcut = (self.conv(weights["nin_shortcut"]),) if "nin_shortcut" in weights else ()
        return _stream(x, (*head, BandAdd(branch, shortcut)), self.band_rows)

    def attend(self, weights: BandWeights, x: Map) -> Map:
        """`flax_vae.layers.AttnBlock`; keys and values are the only whole maps that the device ever holds."""
        norm = self.norm(weights["norm"], x, activate=False)
        maps = (_stream(x, (norm, self.conv(weights[name])), self.band_rows, consume=False) for name in "kv")
        k, v = (rearrange(jnp.asarray(y.whole()), "h w c -> 1 (h w) c") for y in maps)
        branch = (norm, BandAttention(self.conv(weights["q"]), k, v), self.conv(weights["proj_out"]))
        return _stream(x, (BandAdd(branch),), self.band_rows)

    def decode(self, params: BandWeights, z: Float[np.ndarray, "h w z"], *, quant_conv: bool) -> np.ndarray:
        """`flax_vae.coders.Decoder`."""
        weights = params["decoder"]
        head: tuple[BandOp, ...] = (self.conv(weights["conv_in"]),)
        if quant_conv:
            head = (self.conv(params["post_quant_conv"]), *head)
        x = Map(z.shape[0], z.shape[1], {0: z}, np.empty(0), np.empty(0))  # no norm ever looks at it
        # middle
        x = self.resnet(weights["mid"]["block_1"], x, head)
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
                head = (BandUpsample(up["upsample"]["conv"], self.dtype),)
        # end
        closing = (self.norm(weights["norm_out"], x), self.conv(weights["conv_out"]))
        return _stream(x, closing, self.band_rows).whole()


def decode_in_bands(
    model: AutoEncoder,
    params: BandWeights,
    z: Float[Array | np.ndarray, "b h w c"],
    time: Float[Array | np.ndarray, "b ..."] | None = None,
    *,
    band_rows: int = 16,
) -> Float[np.ndarray, "b h*f w*f c"]:
    """Returns the images, nominally in [-1, 1], of scaled latents: those of `AutoEncoder.decode`, up to rounding.

    The images of a batch are decoded one after the other.  For each the host holds one map of the level at hand, `ch`
    numbers per pixel in the end; the device holds the decoder's weights, a few bands, and keys and values where there
    is attention.  The price is up to twice the time of decoding at once.

    Args:
      model: the autoencoder.
      params: its parameters; those of the encoder may be missing.
      z: scaled latents.
      time: see `AutoEncoder`.
      band_rows: rows that the device works on at a time, at every level: fewer take less memory and more time.

    Returns:
      Images in the host's memory, float32, or float64 where the model computes in it.

    Example:
      >>> model = AutoEncoder(PRESETS["tiny"])
      >>> params = init_params(model, jax.random.key(0))
      >>> decode_in_bands(model, params, np.zeros((1, 32, 32, 16))).shape
      (1, 128, 128, 3)

    Raises:
      ValueError: on wrong channels, on missing, superfluous or misshapen `time`, and if `band_rows` is not positive.
    """
    if band_rows < 1:
        raise ArgumentError(
            f"band_rows={band_rows} must be positive; 16 suits most machines", field="band_rows", value=band_rows
        )
    z = jnp.asarray(z)
    time_emb = model.apply({"params": params}, time, z.shape[0], method="embed_time")
    raw = np.asarray(model.apply({"params": params}, z, method="unscale"))
    images = []
    for index in range(len(raw)):
        decoding = _Decoding(None if time_emb is None else jnp.asarray(time_emb)[index], model.dtype, band_rows)
        image = decoding.decode(params, raw[index], quant_conv=model.params.quant_conv)
        images.append(image.astype(jnp.promote_types(image.dtype, jnp.float32)))
    return np.stack(images)
