"""The table of weights: expands an architecture into the list of its tensors.

No names are matched by pattern.  `expand` walks the architecture and gives, for every tensor, our name, the name in the
chosen layout, the operation between the two arrays and the shape.  `to_flax` and `to_torch` walk that list in the two
directions and accept nothing else.  The names are in `flax_vae.convert.table.layouts`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from flax_vae.convert.architecture import Architecture, AutoEncoderParams
from flax_vae.convert.errors import ArgumentError, ConversionError, shorten_lines
from flax_vae.convert.formats import ArrayLike, apply, dtype_name, is_floating
from flax_vae.convert.table.layouts import FAMILIES, Layout, ModuleArray
from flax_vae.convert.table.ops import Op
from flax_vae.convert.table.tiny_autoencoder import TINY_FAMILIES, leaves_of, places_of

LAYOUTS = tuple(name for name, layout in FAMILIES.items() if layout.writable)
READABLE = tuple(FAMILIES)
TINY_LAYOUTS = tuple(name for name, layout in TINY_FAMILIES.items() if layout.writable)
_KNOWN = {**TINY_FAMILIES, **FAMILIES}

# PyTorch's batch norm also counts the batches.  No result depends on the count, and JAX cannot differentiate a tree
# that holds an integer, so the count is copied from file to file and is zero for weights from Flax.
_COUNT = "num_batches_tracked"
COUNTER = f"bn/{_COUNT}"

_LISTED = 1000  # lines of each kind in one message; no published model has more tensors


class Row(NamedTuple):
    """One tensor of the table.

    Attributes:
      ours: Path in the Flax tree, `encoder/down_0/block_0/norm1/scale`.
      theirs: Key in the layout, `encoder.down.0.block.0.norm1.weight`.
      op: Operation between the two arrays.
      shape: Shape of our array.
    """

    ours: str
    theirs: str
    op: Op
    shape: tuple[int, ...]

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """Shape of the array in the layout."""
        return self.op.torch_shape(self.shape)


def _conv(part: str, i: int, o: int, kernel: int, kind: str = "conv") -> list[ModuleArray]:
    return [ModuleArray(part, "kernel", kind, (kernel, kernel, i, o)), ModuleArray(part, "bias", "vector", (o,))]


def _norm(part: str, c: int) -> list[ModuleArray]:
    return [ModuleArray(part, "scale", "vector", (c,)), ModuleArray(part, "bias", "vector", (c,))]


def _linear(part: str, i: int, o: int) -> list[ModuleArray]:
    return [ModuleArray(part, "kernel", "linear", (i, o)), ModuleArray(part, "bias", "vector", (o,))]


def _resnet(i: int, o: int, time: int | None) -> list[ModuleArray]:
    return [
        *_norm("norm1", i),
        *_conv("conv1", i, o, 3),
        *_norm("norm2", o),
        *_conv("conv2", o, o, 3),
        *(_conv("nin_shortcut", i, o, 1) if i != o else []),
        *(_linear("time_mlp", time, o) if time is not None else []),
    ]


def _attention(c: int) -> list[ModuleArray]:
    projections = (_conv(part, c, c, 1, "projection") for part in ("q", "k", "v", "proj_out"))
    return [*_norm("norm", c), *(leaf for leaves in projections for leaf in leaves)]


class _Module(NamedTuple):
    place: str  # a key of `Layout.places`
    leaves: list[ModuleArray]
    s: str = ""  # side: encoder or decoder
    level: int = 0  # 0 = full resolution
    b: int = 0  # block within the level


def _walk(params: AutoEncoderParams) -> Iterator[_Module]:
    """Yields every module that has weights, in the order in which the PyTorch modules register them."""
    p, last, time = params, params.num_levels - 1, params.time_emb_dim

    def middle(s: str, width: int) -> Iterator[_Module]:
        yield _Module("mid_1", _resnet(width, width, time), s)
        if p.mid_attention:
            yield _Module("mid_attn", _attention(width), s)
        yield _Module("mid_2", _resnet(width, width, time), s)

    def blocks(s: str, level: int, i: int, o: int, count: int) -> Iterator[_Module]:
        for b in range(count):
            yield _Module(s, _resnet(o if b else i, o, time), level=level, b=b)
        for b in range(count if p.attends(level) else 0):
            yield _Module(f"{s}_attn", _attention(o), level=level, b=b)

    widths = p.widths
    yield _Module("in", _conv("", p.in_channels, p.ch, 3), "encoder")
    for level in range(p.num_levels):
        yield from blocks("down", level, widths[level - 1] if level else p.ch, widths[level], p.num_res_blocks)
        if level != last:
            yield _Module("downsample", _conv("", widths[level], widths[level], 3), level=level)
    yield from middle("encoder", widths[last])
    yield _Module("norm_out", _norm("", widths[last]), "encoder")
    yield _Module("out", _conv("", widths[last], 2 * p.z_channels, 3), "encoder")

    widths = p.up_widths
    yield _Module("in", _conv("", p.z_channels, widths[last], 3), "decoder")
    yield from middle("decoder", widths[last])
    for level in range(p.num_levels):
        yield from blocks("up", level, widths[min(level + 1, last)], widths[level], p.num_res_blocks + 1)
        if level:
            yield _Module("upsample", _conv("", widths[level], widths[level], 3), level=level)
    yield _Module("norm_out", _norm("", widths[0]), "decoder")
    yield _Module("out", _conv("", widths[0], p.out_ch, 3), "decoder")

    if p.learnable_logvar:
        yield _Module("reg", [ModuleArray("", "logvar_scaling", "vector", (1,))])
    if p.quant_conv:
        yield _Module("quant", _conv("", 2 * p.z_channels, 2 * p.z_channels, 1))
    if p.pre_decoder_conv:
        yield _Module("post_quant", _conv("", p.z_channels, p.z_channels, 1))
    if p.latent_norm == "batch_norm":
        statistics = [ModuleArray("", name, "vector", (p.latent_channels,)) for name in ("running_mean", "running_var")]
        yield _Module("bn", [*statistics, ModuleArray("", _COUNT, "vector", ())])
    if time is not None:
        yield _Module("time", _linear("", time, time))


def families(params: Architecture) -> dict[str, Layout]:
    """Returns the layouts that have names for this kind of autoencoder."""
    return FAMILIES if isinstance(params, AutoEncoderParams) else TINY_FAMILIES


def _modules(params: Architecture) -> Iterator[tuple[str, list[ModuleArray], dict[str, object]]]:
    """Yields every module that has weights: its place, its arrays, and the values that complete its name."""
    if isinstance(params, AutoEncoderParams):
        for m in _walk(params):
            yield m.place, m.leaves, {"s": m.s, "l": m.level, "r": params.num_levels - 1 - m.level, "b": m.b}
    else:
        for module in places_of(params):
            indices = module._asdict()
            yield indices.pop("place"), leaves_of(params, module), indices


def expand(params: Architecture, layout: str = "flux") -> tuple[Row, ...]:
    """Returns the table of an architecture in a layout.

    Args:
      params: Architecture of either family.
      layout: Name of the layout, one of `LAYOUTS`.

    Examples:
      >>> rows = expand(PRESETS["flux1"], "diffusers")
      >>> len(rows), rows[0].ours, rows[0].theirs
      (244, 'encoder/conv_in/kernel', 'encoder.conv_in.weight')

    Raises:
      ConversionError: If the layout has no name for a module of the architecture, or for none of its kind.
      ValueError: If the layout is unknown.
    """
    if layout not in _KNOWN:
        raise ArgumentError(f"unknown layout {layout!r}; expected one of {', '.join(_KNOWN)}")
    known = families(params)
    if layout not in known:
        both_ways = ", ".join(name for name, names in known.items() if names.writable)  # others cannot be asked for
        raise ConversionError(f"the {layout!r} layout has no names for {params.described}; use one of {both_ways}")
    names, ours, rows = known[layout], known["flax"], []
    for place, leaves, indices in _modules(params):
        for leaf in leaves:
            if leaf.name == _COUNT and not names.counts:
                continue
            theirs = names.key(place, leaf.part, leaf.name, **indices)
            path = str(ours.key(place, leaf.part, leaf.name, **indices))
            if theirs is None:
                raise ConversionError(
                    f"the {layout!r} layout has no name for {path}; use the 'flux' layout for this model"
                )
            rows.append(Row(path, theirs, names.ops[leaf.kind], leaf.shape))
    return tuple(rows)


def to_flax(state_dict: Mapping[str, ArrayLike], params: Architecture, layout: str | None = None) -> dict[str, Any]:
    """Returns the Flax tree of a state dict, as views of its arrays; lazy arrays (`Deferred`) stay lazy.

    Args:
      state_dict: Arrays by key.
      params: Architecture of the state dict.
      layout: One of `READABLE`; None identifies it by the keys.

    Examples:
      >>> params = PRESETS["tiny"]
      >>> state_dict = {row.theirs: np.zeros(row.torch_shape, np.float32) for row in expand(params)}
      >>> to_flax(state_dict, params)["encoder"]["conv_in"]["kernel"].shape
      (3, 3, 3, 32)

    Raises:
      ConversionError: If a tensor is missing, unexpected or misshapen (one error lists them all), or if a weight is an
        integer.
      ValueError: If the layout is unknown.
    """
    return unflatten({path: leaf for path, leaf in _to_ours(state_dict, params, layout).items() if path != COUNTER})


def to_torch(tree: Mapping[str, Any], params: Architecture, layout: str = "flux") -> dict[str, Any]:
    """Returns the state dict of a Flax tree; the inverse of `to_flax`.

    Args:
      tree: Nested dictionaries of arrays, `model.init(...)["params"]`.
      params: Architecture of the tree.
      layout: One of `LAYOUTS`.

    Examples:
      >>> params = PRESETS["flux1"]
      >>> tree = unflatten({row.ours: np.zeros(row.shape, np.float16) for row in expand(params)})
      >>> to_torch(tree, params, "diffusers")["decoder.up_blocks.0.resnets.0.conv1.weight"].shape
      (512, 512, 3, 3)

    Raises:
      ConversionError: If a leaf is missing, unexpected or misshapen (one error lists them all), if the layout has no
        name for a module, or if a weight is an integer.
      ValueError: If the layout is unknown.
    """
    return _from_ours(flatten(tree) | _no_batches(params), params, layout)


def translate(state_dict: Mapping[str, ArrayLike], params: Architecture, layout: str | None, to: str) -> dict[str, Any]:
    """Returns a state dict in another layout, as views; the values keep their bits.

    Reads only shapes: lazy arrays (`Deferred`) are read when the arrays of the result are.

    Args:
      state_dict: Arrays by key.
      params: Architecture of the state dict.
      layout: Layout of the state dict; None identifies it by the keys.
      to: Layout to return, one of `LAYOUTS`.

    Raises:
      ConversionError: As for `to_flax` and `to_torch`.
      ValueError: If a layout is unknown.
    """
    return _from_ours(_to_ours(state_dict, params, layout), params, to)


def _to_ours(state_dict: Mapping[str, ArrayLike], params: Architecture, layout: str | None) -> dict[str, Any]:
    layout = recognise(state_dict, params) if layout is None else layout
    rows = expand(params, layout)
    require_same(
        f"the state dict does not fit the {layout!r} layout of this architecture",
        found={key: np.shape(array) for key, array in state_dict.items()},
        expected={row.theirs: row.torch_shape for row in rows},
    )
    require_floats({row.theirs: state_dict[row.theirs] for row in rows if row.ours != COUNTER})
    return _no_batches(params) | {row.ours: apply(row.op.to_flax, row.shape, state_dict[row.theirs]) for row in rows}


def _no_batches(params: Architecture) -> dict[str, Any]:
    """Returns a batch count of zero, for weights that come without one."""
    counted = isinstance(params, AutoEncoderParams) and params.latent_norm == "batch_norm"
    return {COUNTER: np.zeros((), np.int64)} if counted else {}


def _from_ours(leaves: Mapping[str, Any], params: Architecture, layout: str) -> dict[str, Any]:
    if layout not in (*LAYOUTS, *TINY_LAYOUTS):
        known = LAYOUTS if isinstance(params, AutoEncoderParams) else TINY_LAYOUTS
        raise ArgumentError(f"layout {layout!r} cannot be written; expected one of {', '.join(known)}")
    rows = expand(params, layout)
    require_same(
        "the tree does not fit this architecture",
        found={path: np.shape(array) for path, array in leaves.items()},
        expected={row.ours: row.shape for row in rows},
    )
    require_floats({path: leaf for path, leaf in leaves.items() if path != COUNTER})
    return {row.theirs: apply(row.op.to_torch, row.torch_shape, leaves[row.ours]) for row in rows}


def recognise(keys: Mapping[str, Any], params: Architecture) -> str:
    """Returns the layout whose set of keys for this architecture is nearest; `expand` then checks strictly."""
    distances: dict[str, int] = {}
    for layout in families(params):
        try:
            distances[layout] = len(set(keys) ^ {row.theirs for row in expand(params, layout)})
        except ConversionError:  # no name for a module of this architecture
            continue
    return min(distances, key=distances.__getitem__)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns path to leaf, `{"encoder/conv_in/bias": ...}`, of nested dictionaries.

    Args:
      tree: Nested dictionaries.
      prefix: Path that all leaves get in front.
    """
    leaves = {}
    for name, branch in tree.items():
        leaves |= flatten(branch, f"{prefix}{name}/") if isinstance(branch, Mapping) else {f"{prefix}{name}": branch}
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dictionaries of a flat one; the inverse of `flatten`.

    Args:
      leaves: Leaves by path.
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *branches, name = path.split("/")
        branch = tree
        for part in branches:
            branch = branch.setdefault(part, {})
        branch[name] = leaf
    return tree


def require_same(
    what: str,
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    remedy: str = "check that the architecture (preset or config.json) is the one the weights were trained with",
) -> None:
    """Checks that the tensors are exactly the expected ones.

    Args:
      what: Start of the error message, which names the tensors.
      found: Shapes by name.
      expected: Expected shapes by name.
      remedy: End of the error message.

    Raises:
      ConversionError: If tensors are missing, unexpected or misshapen; the message lists all of them.
    """
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    misshapen = [key for key in expected if key in found and found[key] != expected[key]]
    if not (missing or unexpected or misshapen):
        return
    lines = [f"{what}: {len(missing)} missing, {len(unexpected)} unexpected, {len(misshapen)} misshapen"]
    lines += shorten_lines([f"  missing     {key} {expected[key]}" for key in missing], _LISTED)
    lines += shorten_lines([f"  unexpected  {key} {found[key]}" for key in unexpected], _LISTED)
    lines += shorten_lines(
        [f"  misshapen   {key} has shape {found[key]}; expected {expected[key]}" for key in misshapen], _LISTED
    )
    raise ConversionError("\n".join([*lines, remedy]))


def require_floats(weights: Mapping[str, Any]) -> None:
    """Checks that all weights are floating-point; integers belong to a quantised model or are not weights.

    Raises:
      ConversionError: If any is not; names the first, its dtype and how many there are.
    """
    others = {name: dtype_name(array) for name, array in weights.items() if not is_floating(array)}
    if others:
        name, dtype = next(iter(others.items()))
        raise ConversionError(
            f"{len(others):,} of {len(weights):,} weights are not floating-point, the first is {name} ({dtype}); "
            "expected floating-point weights; use the weights from before quantisation"
        )
