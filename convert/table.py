"""The table of weights: an architecture record is expanded into the finite list of its tensors.

Nothing is matched and no name is taken apart.  `expand` walks the architecture and writes down, for every tensor, our
name, their name in the chosen layout, the operation between the two arrays and the shape; `to_flax` and `to_torch` walk
that same list, strictly, in the two directions.

Where our names and the seed's differ is in the leaves (`kernel` and `scale` for `weight`) and in the separators; the
places are listed once each, in `PLACES`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from convert.architecture import AutoEncoderParams
from convert.errors import ConversionError
from convert.ops import CONV, LINEAR, SAME, Op

LAYOUTS = ("flux",)

PLACES = {
    # place             ours                            flux: the seed, black-forest-labs/flux
    "in": ("{s}/conv_in", "{s}.conv_in"),
    "down": ("encoder/down_{l}/block_{b}", "encoder.down.{l}.block.{b}"),
    "down attn": ("encoder/down_{l}/attn_{b}", "encoder.down.{l}.attn.{b}"),
    "downsample": ("encoder/down_{l}/downsample/conv", "encoder.down.{l}.downsample.conv"),
    "mid 1": ("{s}/mid/block_1", "{s}.mid.block_1"),
    "mid attn": ("{s}/mid/attn_1", "{s}.mid.attn_1"),
    "mid 2": ("{s}/mid/block_2", "{s}.mid.block_2"),
    "up": ("decoder/up_{l}/block_{b}", "decoder.up.{l}.block.{b}"),
    "up attn": ("decoder/up_{l}/attn_{b}", "decoder.up.{l}.attn.{b}"),
    "upsample": ("decoder/up_{l}/upsample/conv", "decoder.up.{l}.upsample.conv"),
    "norm out": ("{s}/norm_out", "{s}.norm_out"),
    "out": ("{s}/conv_out", "{s}.conv_out"),
    "quant": ("quant_conv", "quant_conv"),
    "post quant": ("post_quant_conv", "post_quant_conv"),
    "time": ("time_embed", "time_embed"),
    "reg": ("reg", "reg"),
}


class Row(NamedTuple):
    """One tensor.

    Attributes:
      ours: path in the Flax tree, `encoder/down_0/block_0/norm1/scale`.
      theirs: key of the PyTorch state dict, `encoder.down.0.block.0.norm1.weight`.
      op: the operation between the two arrays.
      shape: of our array.
    """

    ours: str
    theirs: str
    op: Op
    shape: tuple[int, ...]

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """Shape of their array."""
        return self.op.torch_shape(self.shape)


class _Leaf(NamedTuple):
    ours: str
    theirs: str
    op: Op
    shape: tuple[int, ...]


def conv(i: int, o: int, kernel: int) -> list[_Leaf]:
    """The tensors of a square convolution from `i` to `o` channels."""
    return [_Leaf("kernel", "weight", CONV, (kernel, kernel, i, o)), _Leaf("bias", "bias", SAME, (o,))]


def norm(c: int) -> list[_Leaf]:
    """The tensors of a GroupNorm."""
    return [_Leaf("scale", "weight", SAME, (c,)), _Leaf("bias", "bias", SAME, (c,))]


def linear(i: int, o: int) -> list[_Leaf]:
    """The tensors of a linear layer."""
    return [_Leaf("kernel", "weight", LINEAR, (i, o)), _Leaf("bias", "bias", SAME, (o,))]


def resnet(i: int, o: int, time: int | None) -> list[_Leaf]:
    """The tensors of a residual block."""
    return [
        *_inside("norm1", norm(i)),
        *_inside("conv1", conv(i, o, 3)),
        *(_inside("time_mlp", linear(time, o)) if time is not None else []),
        *_inside("norm2", norm(o)),
        *_inside("conv2", conv(o, o, 3)),
        *(_inside("nin_shortcut", conv(i, o, 1)) if i != o else []),
    ]


def attention(c: int) -> list[_Leaf]:
    """The tensors of an attention block."""
    projections = [leaf for name in ("q", "k", "v", "proj_out") for leaf in _inside(name, conv(c, c, 1))]
    return [*_inside("norm", norm(c)), *projections]


def _inside(name: str, leaves: list[_Leaf]) -> list[_Leaf]:
    return [leaf._replace(ours=f"{name}/{leaf.ours}", theirs=f"{name}.{leaf.theirs}") for leaf in leaves]


class _Module(NamedTuple):
    place: str  # a key of PLACES
    leaves: list[_Leaf]
    s: str = ""  # side: encoder or decoder
    l: int = 0  # level, 0 = full resolution  # noqa: E741 - the letter of the templates
    b: int = 0  # block within the level


def walk(params: AutoEncoderParams) -> Iterator[_Module]:
    """Yields every module that has weights, in the order in which the PyTorch modules register them."""
    p, widths, last, time = params, params.widths, params.num_levels - 1, params.time_emb_dim

    def middle(s: str) -> Iterator[_Module]:
        yield _Module("mid 1", resnet(widths[last], widths[last], time), s)
        yield _Module("mid attn", attention(widths[last]), s)
        yield _Module("mid 2", resnet(widths[last], widths[last], time), s)

    def level_blocks(s: str, level: int, i: int, blocks: int) -> Iterator[_Module]:
        for b in range(blocks):
            yield _Module(s, resnet(widths[level] if b else i, widths[level], time), l=level, b=b)
        for b in range(blocks if p.attends(level) else 0):
            yield _Module(f"{s} attn", attention(widths[level]), l=level, b=b)

    yield _Module("in", conv(p.in_channels, p.ch, 3), "encoder")
    for level in range(p.num_levels):
        yield from level_blocks("down", level, widths[level - 1] if level else p.ch, p.num_res_blocks)
        if level != last:
            yield _Module("downsample", conv(widths[level], widths[level], 3), l=level)
    yield from middle("encoder")
    yield _Module("norm out", norm(widths[last]), "encoder")
    yield _Module("out", conv(widths[last], 2 * p.z_channels, 3), "encoder")

    yield _Module("in", conv(p.z_channels, widths[last], 3), "decoder")
    yield from middle("decoder")
    for level in range(p.num_levels):
        yield from level_blocks("up", level, widths[min(level + 1, last)], p.num_res_blocks + 1)
        if level:
            yield _Module("upsample", conv(widths[level], widths[level], 3), l=level)
    yield _Module("norm out", norm(widths[0]), "decoder")
    yield _Module("out", conv(widths[0], p.out_ch, 3), "decoder")

    if p.learnable_logvar:
        yield _Module("reg", [_Leaf("logvar_scaling", "logvar_scaling", SAME, (1,))])
    if p.quant_conv:
        yield _Module("quant", conv(2 * p.z_channels, 2 * p.z_channels, 1))
        yield _Module("post quant", conv(p.z_channels, p.z_channels, 1))
    if time is not None:
        yield _Module("time", linear(time, time))


def expand(params: AutoEncoderParams, layout: str = "flux") -> tuple[Row, ...]:
    """Returns the whole table of an architecture in a layout.

    Raises:
      ValueError: if there is no such layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; there are {', '.join(LAYOUTS)}")
    rows = []
    for module in walk(params):
        ours, theirs = (template.format(**module._asdict()) for template in PLACES[module.place])
        rows += [Row(f"{ours}/{leaf.ours}", f"{theirs}.{leaf.theirs}", leaf.op, leaf.shape) for leaf in module.leaves]
    return tuple(rows)


def to_flax(
    state_dict: Mapping[str, np.ndarray], params: AutoEncoderParams, layout: str | None = None
) -> dict[str, Any]:
    """Returns the Flax tree of a PyTorch state dict, as views of its arrays.

    Args:
      state_dict: key to numpy array.
      params: the architecture that the state dict belongs to.
      layout: one of `LAYOUTS`; None recognises it by its keys.

    Raises:
      ConversionError: if a tensor is missing, unexpected or misshapen; one error lists them all.
      ValueError: if there is no such layout.
    """
    layout = recognise(state_dict, params) if layout is None else layout
    rows = expand(params, layout)
    _require(
        f"the state dict does not fit the {layout!r} layout of this architecture",
        found={key: np.shape(array) for key, array in state_dict.items()},
        expected={row.theirs: row.torch_shape for row in rows},
    )
    return unflatten({row.ours: row.op.to_flax(np.asarray(state_dict[row.theirs])) for row in rows})


def to_torch(tree: Mapping[str, Any], params: AutoEncoderParams, layout: str = "flux") -> dict[str, np.ndarray]:
    """Returns the PyTorch state dict of a Flax tree; the inverse of `to_flax`.

    Args:
      tree: nested dictionaries of arrays, `model.init(...)["params"]`.
      params: the architecture that the tree belongs to.
      layout: one of `LAYOUTS`.

    Raises:
      ConversionError: if a leaf is missing, unexpected or misshapen; one error lists them all.
      ValueError: if there is no such layout.
    """
    rows = expand(params, layout)
    leaves = flatten(tree)
    _require(
        "the tree does not fit this architecture",
        found={path: np.shape(array) for path, array in leaves.items()},
        expected={row.ours: row.shape for row in rows},
    )
    return {row.theirs: row.op.to_torch(np.asarray(leaves[row.ours])) for row in rows}


def recognise(keys: Mapping[str, Any], params: AutoEncoderParams) -> str:
    """Returns the layout whose whole set of keys for this architecture is nearest; strictness is left to `expand`."""

    def difference(layout: str) -> int:
        return len(set(keys) ^ {row.theirs for row in expand(params, layout)})

    return min(LAYOUTS, key=difference)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns path to leaf, `{"encoder/conv_in/bias": ...}`, of nested dictionaries."""
    leaves = {}
    for name, branch in tree.items():
        leaves |= flatten(branch, f"{prefix}{name}/") if isinstance(branch, Mapping) else {f"{prefix}{name}": branch}
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *branches, name = path.split("/")
        branch = tree
        for part in branches:
            branch = branch.setdefault(part, {})
        branch[name] = leaf
    return tree


def _require(what: str, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    misshapen = [key for key in expected if key in found and found[key] != expected[key]]
    if not (missing or unexpected or misshapen):
        return
    lines = [f"{what}: {len(missing)} missing, {len(unexpected)} unexpected, {len(misshapen)} misshapen"]
    lines += [f"  missing     {key} {expected[key]}" for key in missing]
    lines += [f"  unexpected  {key} {found[key]}" for key in unexpected]
    lines += [f"  misshapen   {key} is {found[key]}, must be {expected[key]}" for key in misshapen]
    lines += ["check that the architecture (preset or config.json) is the one the weights were trained with"]
    raise ConversionError("\n".join(lines))
