"""Decodes large images band by band on one device in bounded memory; the result equals that of decoding at once.

Independent tiles show seams: at the edge of a tile, convolutions pad with zeros instead of the neighbouring pixels, and
normalisations use only the tile's statistics.  Here feature maps are in host memory, and the device holds a band of
rows:

* a band includes the rows around it that its convolutions reach (`flax_vae.inference.band_ops`);
* normalisations use the statistics of the whole map, computed by a pass over its bands;
* rows of a map are released as soon as no later band needs them, and their memory is used again;
* intermediate results of blocks and upsampled maps are stored where they fit beside the block's input, and otherwise
  recomputed; for FLUX.1 at 1024 x 1024 the last upsampled map would take 1 GB;
* the host copies rows of one band while the device computes another.

Shapes: `b` batch, `h w` height and width, `c` channels, `t` width of the time embedding.
"""

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
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
    widest_of,
)
from flax_vae.ops import release_compiler_memory

# Bytes of the maps of a block that may be stored at once.
MAP_BYTES = 3 << 28

# Most bytes of a band, unless it is a single row: larger ones do not stay in the caches.
BAND_BYTES = 1 << 23


class _Buffers:
    """Memory for bands, used again for bands of equal size: to map new memory takes longer than to copy a band."""

    def __init__(self):
        self._free: list[mmap.mmap] = []

    def array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Returns an array in memory that is mapped separately, so that it can be returned to the operating system."""
        nbytes = math.prod(shape) * dtype.itemsize
        self._free = [memory for memory in self._free if len(memory) == nbytes]
        memory = self._free.pop() if self._free else mmap.mmap(-1, nbytes)
        return np.frombuffer(memory, dtype).reshape(shape)

    def release(self, array: np.ndarray) -> None:
        """Allows the memory of an array to be used again."""
        base = array
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, memoryview):
            base = base.obj
        if isinstance(base, mmap.mmap):
            self._free.append(base)


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

    @property
    def channels(self) -> int:
        """Number of channels."""
        return next(iter(self.bands.values())).shape[-1]

    def drop_rows_above(self, row: int, buffers: _Buffers) -> None:
        """Releases the bands that end above `row`."""
        for first in [first for first, band in self.bands.items() if first + len(band) <= row]:
            buffers.release(self.bands.pop(first))

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


@dataclass(frozen=True)
class _Branch:
    """Operations on a map, whose results are added to those of other branches.

    Attributes:
      source: Input map.
      steps: Operations, in order.
      consume: Whether to release rows of the source that are no longer needed.
    """

    source: Map
    steps: tuple[BandOp, ...]
    consume: bool = True

    @property
    def scale(self) -> int:
        """Number of result rows for each row of the source."""
        return 2 if any(isinstance(step, BandUpsample) for step in self.steps) else 1

    def band(self, first: int, rows: int) -> tuple[np.ndarray, np.int32]:
        """Returns the input for rows of the result, and the number of its first row."""
        start, reach = first // self.scale, reach_of(self.steps)
        return self.source.rows(start - reach, start + rows // self.scale + reach), np.int32(start - reach)


def _run_pass(branches: Sequence[_Branch], band_rows: int, buffers: _Buffers, *, keep: bool = True) -> Map:
    """Applies operations to maps, band by band, and adds the results.

    Args:
      branches: Operations and their inputs.
      band_rows: Maximum number of rows of a band at its highest resolution; see `BAND_BYTES` too.
      buffers: Memory for the result.
      keep: Whether to keep the result, instead of its statistics only.
    """
    scale = max(branch.scale for branch in branches)
    height, width = (branches[0].scale * size for size in (branches[0].source.height, branches[0].source.width))
    itemsize = next(iter(branches[0].source.bands.values())).itemsize
    widest = max(max(widest_of(branch.steps), branch.source.channels // branch.scale) for branch in branches)
    row_bytes = width * widest * itemsize
    most = max(min(band_rows, BAND_BYTES // row_bytes) // scale, 1)
    rows = scale * -(-height // scale // -(-height // scale // most))  # equally many in each band, of more even size
    result = Map(height, width, {}, np.empty(0), np.empty(0))
    means, deviations = [], []
    running: tuple[int, Any] | None = None

    def collect(start: int, outputs: tuple[Array | None, Array, Array]) -> None:
        """Waits for a band, and stores it."""
        y, mean, deviation = outputs
        inside = min(rows, height - start)  # the last band may extend beyond the map
        means.append(np.asarray(mean)[:inside])
        deviations.append(np.asarray(deviation)[:inside])
        if y is None:
            return
        values = np.asarray(y)[:inside]
        for branch in branches:
            if branch.consume:
                branch.source.drop_rows_above((start + inside) // branch.scale - reach_of(branch.steps), buffers)
        result.bands[start] = buffers.array(values.shape, values.dtype)
        result.bands[start][...] = values

    for start in range(0, height, rows):
        bands, starts = zip(*(branch.band(start, rows) for branch in branches), strict=True)
        if running is not None:
            jax.block_until_ready(running[1])
        outputs = run_ops(
            tuple(branch.steps for branch in branches),
            bands,
            starts,
            heights=tuple(branch.source.height for branch in branches),
            rows=rows,
            keep=keep,
        )
        if running is not None:
            collect(*running)
        else:
            release_compiler_memory()  # the program of all bands has just been compiled
        running = start, outputs
    if running is not None:
        collect(*running)
    result.mean, result.deviation = np.concatenate(means), np.concatenate(deviations)
    return result


# ---------------------------------------------------------------------------------------------------- the decoder


@dataclass(frozen=True)
class _Decoding:
    """Blocks of the decoder as passes over the map of one image; `head` are operations between map and block."""

    time_emb: Float[Array, " t"] | None
    dtype: Dtype | None
    band_rows: int
    padding_mode: PaddingMode
    map_bytes: int
    buffers: _Buffers

    def conv(self, weights: BandWeights) -> BandConv:
        return BandConv(weights, self.dtype, self.padding_mode)

    def norm(self, weights: BandWeights, source: Map, activate: bool = True) -> BandNorm:
        return BandNorm(weights, *source.statistics(), self.dtype, activate)

    def run(self, *branches: _Branch, keep: bool = True) -> Map:
        return _run_pass(branches, self.band_rows, self.buffers, keep=keep)

    def resnet(self, weights: BandWeights, x: Map, head: tuple[BandOp, ...] = ()) -> Map:
        """Applies a `flax_vae.layers.ResnetBlock`, whose first half is computed twice if it cannot be stored."""
        release_compiler_memory()  # and what bands of other sizes used
        scale = _Branch(x, head).scale
        features = weights["conv1"]["kernel"].shape[-1]
        pixels = x.height * x.width * scale**2
        if head and self.fits(pixels, weights["conv1"]["kernel"].shape[-2], pixels, features):
            x, head = self.run(_Branch(x, head)), ()
            release_compiler_memory()
        inner = self.run(_Branch(x, head), keep=False) if head else x
        opening: tuple[BandOp, ...] = (self.norm(weights["norm1"], inner), self.conv(weights["conv1"]))
        if self.time_emb is not None:
            opening += (AddTime(weights["time_mlp"], self.time_emb, self.dtype),)
        stored = self.fits(x.height * x.width, x.channels, pixels, features)
        inner = self.run(_Branch(x, head + opening, consume=False), keep=stored)
        closing = (self.norm(weights["norm2"], inner), self.conv(weights["conv2"]))
        if stored:
            return self.run(_Branch(inner, closing), _Branch(x, self.shortcut(weights, head)))
        shortcut = (self.conv(weights["nin_shortcut"]),) if "nin_shortcut" in weights else ()
        return self.run(_Branch(x, (*head, BandAdd((*opening, *closing), shortcut))))

    def fits(self, pixels: int, channels: int, more_pixels: int, more_channels: int) -> bool:
        """Returns whether two maps can be stored at once."""
        itemsize = np.dtype(jnp.float32 if self.dtype is None else self.dtype).itemsize
        return (pixels * channels + more_pixels * more_channels) * itemsize <= self.map_bytes

    def shortcut(self, weights: BandWeights, head: tuple[BandOp, ...]) -> tuple[BandOp, ...]:
        """Returns the operations from the map to what is added to a block's branch."""
        if "nin_shortcut" not in weights:
            return head
        if len(head) == 1 and isinstance(head[0], BandUpsample):
            return (head[0].followed_by(weights["nin_shortcut"]),)
        return (*head, self.conv(weights["nin_shortcut"]))

    def attend(self, weights: BandWeights, x: Map) -> Map:
        """Applies a `flax_vae.layers.AttnBlock`; the device holds all keys and values of the map."""
        norm = self.norm(weights["norm"], x, activate=False)
        maps = (self.run(_Branch(x, (norm, self.conv(weights[name])), consume=False)) for name in "kv")
        k, v = (rearrange(jnp.asarray(y.whole()), "h w c -> 1 (h w) c") for y in maps)
        branch = (norm, BandAttention(self.conv(weights["q"]), k, v), self.conv(weights["proj_out"]))
        return self.run(_Branch(x, (BandAdd(branch),)))

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
        return self.run(_Branch(x, closing)).whole()


def decode_in_bands(
    model: Model,
    params: BandWeights,
    z: Float[Array | np.ndarray, "b h w c"],
    time: Float[Array | np.ndarray, "b ..."] | None = None,
    *,
    band_rows: int = 16,
    map_bytes: int = MAP_BYTES,
) -> Float[np.ndarray, "b h*f w*f c"]:
    """Decodes scaled latents in bounded memory; equals `AutoEncoder.decode` up to rounding.

    The images of a batch are decoded one after another.  The host holds one or two feature maps of the current level,
    with `ch` values per pixel at the last; the device holds the decoder's weights, a few bands, and keys and values of
    attention.  A tiny autoencoder, whose maps are small, decodes an image at once.

    Args:
      model: Autoencoder.
      params: Parameters of the model; those of the encoder may be missing.
      z: Scaled latents.
      time: Time of each image; see `AutoEncoder`.
      band_rows: Largest number of rows that the device computes at a time, at every level; fewer need less memory and
        more time.
      map_bytes: Bytes of feature maps on the host within which intermediate results are stored; those that do not fit
        are computed twice or three times.  As many bytes as the last feature map takes are always used.

    Returns:
      Images in host memory, nominally in [-1, 1], float32, or float64 if the model computes in it.

    Examples:
      >>> model = AutoEncoder(PRESETS["tiny"])
      >>> params = init_params(model, jax.random.key(0))
      >>> decode_in_bands(model, params, np.zeros((1, 8, 4, 16)), band_rows=8).shape
      (1, 32, 16, 3)

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
    pixels = raw.shape[1] * raw.shape[2] * 4 ** (model.params.num_levels - 1)
    itemsize = np.dtype(raw.dtype if model.dtype is None else model.dtype).itemsize
    most = max(map_bytes, pixels * model.params.up_widths[0] * itemsize)
    images = []
    for index in range(len(raw)):
        row = None if time_emb is None else jnp.asarray(time_emb)[index]
        decoding = _Decoding(row, model.dtype, band_rows, model.params.padding_mode, most, _Buffers())
        image = decoding.decode(params, raw[index])
        images.append(image.astype(jnp.promote_types(image.dtype, jnp.float32)))
    return np.stack(images)
