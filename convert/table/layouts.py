"""Names of the same modules in every layout: one row per module, one column per family of layouts.

`flux` is the layout of this project and of black-forest-labs, `ldm` of CompVis (the same names, fewer modules), `flux2`
of FLUX.2's own file, `diffusers` of Hugging Face, `diffusers-flax` of its former Flax classes (up to 0.39).  Read-only
layouts: `diffusers-legacy` (before 0.18) and `flax`, the parameter tree itself as in training checkpoints and msgpack
files.
`{s}` is encoder or decoder, `{l}` the level counted from full resolution, `{r}` from the bottom, `{b}` the block.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

from flax_vae.convert.table.ops import CONV, CONV_AS_DENSE, CONV_AS_LINEAR, LINEAR, SAME, Op

# place          ours                              flux                               diffusers
_PLACES = """
in               {s}/conv_in                       {s}.conv_in                        {s}.conv_in
down             encoder/down_{l}/block_{b}        encoder.down.{l}.block.{b}         encoder.down_blocks.{l}.resnets.{b}
down_attn        encoder/down_{l}/attn_{b}         encoder.down.{l}.attn.{b}          encoder.down_blocks.{l}.attentions.{b}
downsample       encoder/down_{l}/downsample/conv  encoder.down.{l}.downsample.conv   encoder.down_blocks.{l}.downsamplers.0.conv
mid_1            {s}/mid/block_1                   {s}.mid.block_1                    {s}.mid_block.resnets.0
mid_attn         {s}/mid/attn_1                    {s}.mid.attn_1                     {s}.mid_block.attentions.0
mid_2            {s}/mid/block_2                   {s}.mid.block_2                    {s}.mid_block.resnets.1
up               decoder/up_{l}/block_{b}          decoder.up.{l}.block.{b}           decoder.up_blocks.{r}.resnets.{b}
up_attn          decoder/up_{l}/attn_{b}           decoder.up.{l}.attn.{b}            decoder.up_blocks.{r}.attentions.{b}
upsample         decoder/up_{l}/upsample/conv      decoder.up.{l}.upsample.conv       decoder.up_blocks.{r}.upsamplers.0.conv
norm_out         {s}/norm_out                      {s}.norm_out                       {s}.conv_norm_out
out              {s}/conv_out                      {s}.conv_out                       {s}.conv_out
quant            quant_conv                        quant_conv                         quant_conv
post_quant       post_quant_conv                   post_quant_conv                    post_quant_conv
bn               bn                                bn                                 bn
time             time_embed                        time_embed                         -
reg              reg                               reg                                -
"""  # noqa: E501 - a table

# inside a block  ours and flux    diffusers        diffusers-legacy
_PARTS = """
norm1             norm1            norm1            norm1
conv1             conv1            conv1            conv1
time_mlp          time_mlp         -                -
norm2             norm2            norm2            norm2
conv2             conv2            conv2            conv2
nin_shortcut      nin_shortcut     conv_shortcut    conv_shortcut
norm              norm             group_norm       group_norm
q                 q                to_q             query
k                 k                to_k             key
v                 v                to_v             value
proj_out          proj_out         to_out.0         proj_attn
"""


def _columns(table: str) -> list[dict[str, str | None]]:
    rows = [line.split() for line in table.strip().splitlines()]
    return [{row[0]: None if row[column] == "-" else row[column] for row in rows} for column in range(1, len(rows[0]))]


OURS, _FLUX, _DIFFUSERS = _columns(_PLACES)
_FLUX_PARTS, _DIFFUSERS_PARTS, _LEGACY_PARTS = _columns(_PARTS)

_TORCH_LEAVES = {"kernel": "weight", "scale": "weight"}
_TORCH_OPS = {"conv": CONV, "projection": CONV, "linear": LINEAR, "vector": SAME}


class ModuleArray(NamedTuple):
    """One array of a module.

    Attributes:
      part: Module inside a block, a key of `Layout.parts`; empty where the block is the module.
      name: Name of the array in Flax.
      kind: Kind of array, a key of `Layout.ops`.
      shape: Shape of our array.
    """

    part: str
    name: str
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Names and axis orders of the tensors in one layout.

    Attributes:
      name: Name of the layout, `"flux"` for example.
      places: Name template by module; None where the layout has no such module.
      parts: Name by module inside a block; None where the layout has no such module.
      ops: Operation between the layout's array and ours, by kind of array.
      writable: Whether weights can be written in this layout.
      flax_names: Whether names follow a Flax tree: slashes, `list_0`, `kernel` and `scale`.
      counts: Whether the tensors include a batch norm's number of batches.
    """

    name: str
    places: dict[str, str | None]
    parts: dict[str, str | None]
    ops: dict[str, Op]
    writable: bool = True
    flax_names: bool = False
    counts: bool = True

    def key(self, place: str, part: str, leaf: str, **indices: object) -> str | None:
        """Returns the name of a tensor, or None where the layout has none.

        Args:
          place: Module, a key of `places`.
          part: Module inside the block, a key of `parts`; `""` where the block is the module.
          leaf: Name of the array in Flax.
          **indices: Values of `s`, `l`, `r` and `b` in the template.
        """
        template, inner = self.places[place], self.parts[part] if part else ""
        if template is None or inner is None:
            return None
        module = ".".join(filter(None, (template.format(**indices), inner)))
        if self.flax_names:  # linen's names for list members
            return re.sub(r"\.(\d+)", r"_\1", module).replace(".", "/") + f"/{leaf}"
        return f"{module}.{_TORCH_LEAVES.get(leaf, leaf)}"


_BOTH_BY_DIFFUSERS = {"conv": CONV, "projection": CONV_AS_LINEAR, "linear": LINEAR, "vector": SAME}
_NOT_IN_LDM: dict[str, str | None] = {"time": None, "reg": None, "bn": None}

FAMILIES: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("flux", _FLUX, _FLUX_PARTS, _TORCH_OPS),
        Layout("ldm", _FLUX | _NOT_IN_LDM, _FLUX_PARTS | {"time_mlp": None}, _TORCH_OPS),
        Layout(
            "flux2",
            _FLUX | {"quant": "encoder.quant_conv", "post_quant": "decoder.post_quant_conv", "time": None, "reg": None},
            _FLUX_PARTS | {"time_mlp": None},
            _TORCH_OPS,
        ),
        Layout("diffusers", _DIFFUSERS, _DIFFUSERS_PARTS, _BOTH_BY_DIFFUSERS),
        Layout("diffusers-legacy", _DIFFUSERS | {"bn": None}, _LEGACY_PARTS, _BOTH_BY_DIFFUSERS, writable=False),
        Layout(
            "diffusers-flax",
            _DIFFUSERS | {"bn": None},
            _LEGACY_PARTS,
            {"conv": SAME, "projection": CONV_AS_DENSE, "linear": SAME, "vector": SAME},
            flax_names=True,
        ),
        Layout("flax", OURS, _FLUX_PARTS, dict.fromkeys(_TORCH_OPS, SAME), False, flax_names=True, counts=False),
    )
}
