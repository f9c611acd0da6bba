"""Sinusoidal time embedding.

Twins: `torch_ref.embedding` and `flax_vae.embedding`.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

# One vector per image; None for a model without time.
TimeEmb = Float[Tensor, "b t"] | None


def sinusoidal_embedding(time: Float[Tensor, " b"], dim: int) -> Float[Tensor, "b t"]:
    """Expands one scalar per image into `dim / 2` cosines and `dim / 2` sines.

    Column i is `cos(time * 10000^(-2i/dim))`, column `dim/2 + i` the sine of that angle; times between about 0 and
    1000 use the whole range of frequencies.

    Source: Vaswani et al. 2017; openai/guided-diffusion `nn.py::timestep_embedding`.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float64, device=time.device) / half
    frequencies = torch.exp(-math.log(10_000.0) * exponents).to(time.dtype)
    angles = time[:, None] * frequencies[None, :]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
