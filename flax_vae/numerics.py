"""How a model is computed: dtypes, rematerialisation, and the path of attention."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype

from flax_vae.attention import AttentionPath
from flax_vae.convert.architecture import Padding, PaddingMode
from flax_vae.convert.errors import ArgumentError
from flax_vae.convert.formats import FLOATS
from flax_vae.ops import Conv, Dense, convolve, upsample_and_convolve

Remat = Literal["none", "attention", "blocks"]


@dataclass(frozen=True)
class Numerics:
    """How a model is computed.  Results are equal up to rounding, and parameters have equal names and shapes.

    Attributes:
      dtype: Computation dtype; None infers it from inputs and parameters, `jnp.bfloat16` computes in bfloat16 with
        parameters and statistics in float32.
      param_dtype: Dtype of the parameters that `init` creates.
      remat: Blocks whose activations the backward pass recomputes instead of keeping: `"none"`, `"attention"` or
        `"blocks"` (all of them).
      attention: Path of attention, `"auto"`, `"full"`, `"tiles"` or `"cudnn"`; see `flax_vae.attention`.

    Raises:
      ValueError: If a value is unknown.
    """

    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    remat: Remat = "none"
    attention: AttentionPath = "auto"

    def __post_init__(self):
        if self.dtype is not None:
            _require_float("dtype", self.dtype)
        _require_float("param_dtype", self.param_dtype)
        for name, value, choices in (("remat", self.remat, Remat), ("attention", self.attention, AttentionPath)):
            if value not in get_args(choices):
                raise ArgumentError(
                    f"{name}={value!r} must be one of {', '.join(map(repr, get_args(choices)))}",
                    field=name,
                    value=value,
                )

    def conv(
        self,
        features: int,
        kernel_size: int,
        *,
        strides: int = 1,
        padding: Padding = "symmetric",
        padding_mode: PaddingMode = "zeros",
        use_bias: bool = True,
        upsample: bool = False,
    ) -> Conv:
        """Returns a convolution.

        Args:
          features: Channels of the output.
          kernel_size: Height and width of the kernel, an odd number.
          strides: Stride, in both directions.
          padding: `"symmetric"` keeps height and width at stride 1; for `"asymmetric"` see `Downsample`.
          padding_mode: `"zeros"` or `"reflect"`, with what the map is padded.
          use_bias: Whether a bias is added.
          upsample: Whether nearest-neighbour upsampling doubles the map before.
        """
        convolution = upsample_and_convolve if upsample else convolve
        # Flax's "SAME" equals neither of the two for every size.
        side = (kernel_size // 2, kernel_size // 2)
        return Conv(
            features,
            (kernel_size, kernel_size),
            strides=strides,
            padding=(side, side) if padding == "symmetric" else ((0, 1), (0, 1)),
            use_bias=use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            convolution=convolution if padding_mode == "zeros" else partial(convolution, padding_mode=padding_mode),
            round_kernel=not upsample,  # which sums the weights before it rounds them
        )

    def dense(self, features: int) -> Dense:
        """Returns a linear map with `features` outputs.

        Args:
          features: Number of outputs.
        """
        return Dense(features, dtype=self.dtype, param_dtype=self.param_dtype)

    def block(self, kind: type[nn.Module]) -> Callable[..., Any]:
        """Returns the constructor of a residual block with these numerics.

        Args:
          kind: Class of the block.
        """
        return partial(nn.remat(kind) if self.remat == "blocks" else kind, numerics=self)

    def blocks(self, resnet: type[nn.Module], attn: type[nn.Module]) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Returns constructors of residual and attention blocks with these numerics.

        Args:
          resnet: Class of the residual block.
          attn: Class of the attention block.
        """
        attn = attn if self.remat == "none" else nn.remat(attn)
        return self.block(resnet), partial(attn, numerics=self)


def _require_float(name: str, dtype: Any) -> None:
    try:
        known = dtype is not None and np.dtype(dtype).name in FLOATS
    except TypeError:
        known = False
    if not known:
        shown = getattr(dtype, "__name__", dtype)
        raise ArgumentError(f"{name}={str(shown)!r} must be one of {', '.join(FLOATS)}", field=name, value=str(shown))
