"""The part of the table that describes tiny autoencoders: their modules, and the names of these in every layout.

`flux` has the names of this project, `diffusers` those of `AutoencoderTiny`, `taesd` those of the authors, and `flax`
is the parameter tree itself.  In `diffusers` and `taesd` each half is one sequence of layers, and `{n}` counts all of
them, without weights too.  The authors' decoder begins with a layer that limits the latent, diffusers' does not.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from flax_vae.convert.architecture import POOL_WIDENING, TinyAutoEncoderParams
from flax_vae.convert.formats import ArrayLike
from flax_vae.convert.table.layouts import Layout, ModuleArray
from flax_vae.convert.table.ops import CONV, SAME

HALVES = ("encoder", "decoder")
PAIR_LAYOUT = "taesd"  # which the authors write as one file for each half

# place          ours                              flux                             diffusers
_PLACES = """
in               {s}/conv_in                       {s}.conv_in                      {s}.layers.{n}
block            {s}/{d}_{l}/block_{b}             {s}.{d}.{l}.block.{b}            {s}.layers.{n}
resample         {s}/{d}_{l}/{d}sample             {s}.{d}.{l}.{d}sample            {s}.layers.{n}
out              {s}/conv_out                      {s}.conv_out                     {s}.layers.{n}
"""

# inside a block  ours              flux              diffusers and taesd
_PARTS = """
conv1             conv1             conv1             conv.0
conv2             conv2             conv2             conv.2
conv3             conv3             conv3             conv.4
pool/conv_in      pool/conv_in      pool.conv_in      pool.0
pool/norm         pool/norm         pool.norm         pool.1
pool/conv_out     pool/conv_out     pool.conv_out     pool.3
"""


class Place(NamedTuple):
    """Position of a module in a tiny autoencoder: the values that complete a template of `_PLACES`.

    Attributes:
      place: Kind of module, a key of the table.
      s: Half, encoder or decoder.
      d: Direction of the half, down or up.
      l: Level, 0 at full resolution.
      b: Block within the level.
      n: Number of the layer in diffusers' sequence.
    """

    place: str
    s: str
    d: str
    l: int = 0  # noqa: E741 - as in the templates
    b: int = 0
    n: int = 0


def places_of(params: TinyAutoEncoderParams) -> Iterator[Place]:
    """Yields every module that has weights, in the order in which it is computed; a block is one module."""
    last = params.num_levels - 1
    yield Place("in", "encoder", "down")
    n = 1
    for level in range(last + 1):
        for b in range(params.encoder_blocks[level]):
            yield Place("block", "encoder", "down", level, b, n)
            n += 1
        kind = "out" if level == last else "resample"
        yield Place(kind, "encoder", "down", level, 0, n)
        n += 1
    yield Place("in", "decoder", "up")
    n = 2  # after an activation
    for level in range(last, -1, -1):
        for b in range(params.decoder_blocks[level]):
            yield Place("block", "decoder", "up", level, b, n)
            n += 1
        if level:
            n += 1  # upsampling precedes its convolution
            yield Place("resample", "decoder", "up", level, 0, n)
        else:
            yield Place("out", "decoder", "up", level, 0, n)
        n += 1


def leaves_of(params: TinyAutoEncoderParams, place: Place) -> list[ModuleArray]:
    """Returns the arrays of a module."""
    p, encodes = params, place.s == "encoder"
    ch = p.ch if encodes else p.up_ch
    if place.place == "in":
        return _conv("", p.in_channels if encodes else p.z_channels, ch)
    if place.place == "out":
        return _conv("", ch, p.z_channels if encodes else p.out_ch)
    if place.place == "resample":
        return _conv("", ch, ch, bias=False)
    block = [leaf for part in ("conv1", "conv2", "conv3") for leaf in _conv(part, ch, ch)]
    if not (p.down_pools if encodes else p.up_pools)(place.l):
        return block
    wide = POOL_WIDENING * ch
    norm = [ModuleArray("pool/norm", name, "vector", (wide,)) for name in ("scale", "bias")]
    widening, narrowing = (
        _conv(f"pool/{part}", i, o, kernel=1, bias=False)
        for part, i, o in (("conv_in", ch, wide), ("conv_out", wide, ch))
    )
    return [*block, *widening, *norm, *narrowing]


def _conv(part: str, i: int, o: int, *, kernel: int = 3, bias: bool = True) -> list[ModuleArray]:
    weight = ModuleArray(part, "kernel", "conv", (kernel, kernel, i, o))
    return [weight, *([ModuleArray(part, "bias", "vector", (o,))] if bias else [])]


def _columns(table: str) -> list[dict[str, str | None]]:
    rows = [line.split() for line in table.strip().splitlines()]
    return [{row[0]: row[column] for row in rows} for column in range(1, len(rows[0]))]


@dataclass(frozen=True)
class _Sequence(Layout):
    """A layout that numbers the layers of each half.

    Attributes:
      first: Number of the decoder's first layer with weights; the encoder's is 0.
    """

    first: int = 0

    def key(self, place: str, part: str, leaf: str, **indices: object) -> str | None:
        if indices["s"] == "decoder":
            indices |= {"n": int(str(indices["n"])) + self.first}
        return super().key(place, part, leaf, **indices)


_OURS, _FLUX, _DIFFUSERS = _columns(_PLACES)
_OUR_PARTS, _FLUX_PARTS, _SEQUENCE_PARTS = _columns(_PARTS)
_AUTHORS: dict[str, str | None] = {place: str(name).replace(".layers", "") for place, name in _DIFFUSERS.items()}
_OPS = {"conv": CONV, "vector": SAME}

TINY_FAMILIES: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("flux", _FLUX, _FLUX_PARTS, _OPS),
        _Sequence("diffusers", _DIFFUSERS, _SEQUENCE_PARTS, _OPS),
        _Sequence(PAIR_LAYOUT, _AUTHORS, _SEQUENCE_PARTS, _OPS, first=1),
        Layout("flax", _OURS, _OUR_PARTS, dict.fromkeys(_OPS, SAME), writable=False, flax_names=True),
    )
}


def is_half(names: Iterable[str]) -> bool:
    """Returns whether names can be those of one half in a file of its own, where they begin at a layer's number.

    Args:
      names: Names of all tensors of a file.
    """
    return all(name.partition(".")[0].isdecimal() for name in names)


def join_halves(encoder: Mapping[str, Any], decoder: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tensors of two such files by their names in the layout, which begin with the half.

    Args:
      encoder: Tensors of the encoder's file.
      decoder: Tensors of the decoder's file.
    """
    halves = zip(HALVES, (encoder, decoder), strict=True)
    return {f"{half}.{name}": tensor for half, tensors in halves for name, tensor in tensors.items()}


def split_halves(state_dict: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the tensors of each half; the inverse of `join_halves`.

    Args:
      state_dict: Tensors of a whole model.
    """
    return {
        half: {name.removeprefix(f"{half}."): t for name, t in state_dict.items() if name.startswith(f"{half}.")}
        for half in HALVES
    }


def infer_tiny(tensors: Mapping[str, ArrayLike], layout: Layout) -> TinyAutoEncoderParams:
    """Returns the architecture of a tiny autoencoder's tensors in a layout.

    Every field follows from names and shapes but `patch`, which is 2 where the encoder has pools: the published weights
    that have them are TAEF2's, and its diffusion model takes patches.

    Raises:
      KeyError: If a tensor is missing that every tiny autoencoder has in this layout.
      ValueError: If the numbers are not those of an architecture.
    """

    def key(place: str, s: str, leaf: str = "kernel", part: str = "", **indices: int) -> str:
        direction = "down" if s == "encoder" else "up"
        return str(layout.key(place, part, leaf, s=s, d=direction, **{"l": 0, "b": 0, "n": 0} | indices))

    def in_sequence(s: str) -> tuple[list[int], int]:
        """Returns the numbers of blocks between convolutions, and the number of the last convolution."""
        blocks, n = [0], 1 if s == "encoder" else 2
        while True:
            if key("block", s, part="conv1", n=n) in tensors:
                blocks[-1] += 1
            elif key("out", s, "bias", n=n) in tensors:
                return blocks, n
            elif key("resample", s, n=n) in tensors:
                blocks.append(0)
            elif key("resample", s, n=n + 1) not in tensors:  # nor is this an upsampling before a convolution
                raise KeyError(key("out", s, n=n))
            n += 1

    def by_level(s: str) -> tuple[list[int], int]:
        blocks = [0]
        while key("resample", s, l=len(blocks) - (s == "encoder")) in tensors:
            blocks.append(0)
        for level in range(len(blocks)):
            while key("block", s, part="conv3", l=level, b=blocks[level]) in tensors:
                blocks[level] += 1
        return blocks if s == "encoder" else blocks[::-1], 0

    count = in_sequence if isinstance(layout, _Sequence) else by_level
    encoder_blocks, _ = count("encoder")
    decoder_blocks, end = count("decoder")

    def channels(place: str, s: str, n: int = 0) -> tuple[int, ...]:
        shape = tuple(tensors[key(place, s, n=n)].shape)
        if len(shape) != 4:
            raise KeyError(place)
        return shape[2:] if layout.flax_names else shape[1::-1]  # input, output

    if not sum(encoder_blocks):
        raise KeyError("block")
    pool, decoder_pool = (
        any(name.startswith(half) and (".pool." in name or "/pool/" in name) for name in tensors) for half in HALVES
    )
    return TinyAutoEncoderParams(
        z_channels=channels("in", "decoder")[0],
        in_channels=channels("in", "encoder")[0],
        ch=channels("in", "encoder")[1],
        out_ch=channels("out", "decoder", end)[1],
        encoder_blocks=tuple(encoder_blocks),
        decoder_blocks=tuple(decoder_blocks[::-1]),
        pool=pool,
        patch=2 if pool else 1,
        decoder_ch=channels("in", "decoder")[1],
        decoder_pool=decoder_pool,
    )
