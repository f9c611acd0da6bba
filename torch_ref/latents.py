"""Converts between raw latents and the latents that diffusion models are trained on.

Twins: `torch_ref.latents` and `flax_vae.latents`.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from flax_vae.convert.architecture import Architecture


class LatentNorm(nn.Module):
    """Normalises latents as FLUX.2 does: gathers 2 x 2 patches into channels and uses running statistics.

    The statistics are buffers: part of the weights, and not trained.

    Attributes:
      channels: Channels of the patched latent, `4 * z_channels`, in the order `(c pi pj)`.
      eps: Number that is added to each variance.

    Source: black-forest-labs/flux2 `autoencoder.py`; diffusers `AutoencoderKLFlux2`.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, eps: float = 1e-4):
        super().__init__()
        self.eps = eps
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def normalise(self, z: Float[Tensor, "b z 2*h 2*w"]) -> Float[Tensor, "b 4*z h w"]:
        """Returns the patched latent; subtracts each channel's running mean and divides by its standard deviation."""
        z = rearrange(z, "b c (h pi) (w pj) -> b (c pi pj) h w", pi=2, pj=2)
        return (z - self._mean()) / self._std()

    def denormalise(self, z: Float[Tensor, "b 4*z h w"]) -> Float[Tensor, "b z 2*h 2*w"]:
        """Returns the raw latent; the inverse of `normalise`."""
        z = z * self._std() + self._mean()
        return rearrange(z, "b (c pi pj) h w -> b c (h pi) (w pj)", pi=2, pj=2)

    def _mean(self) -> Tensor:
        return self.running_mean[None, :, None, None]

    def _std(self) -> Tensor:
        return torch.sqrt(self.running_var[None, :, None, None] + self.eps)


def channel_statistics(params: Architecture, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """Returns what a latent is shifted by and divided by: numbers, or one for each channel, in the dtype of `like`."""
    if params.latent_mean is None or params.latent_std is None:
        return params.shift_factor, 1.0
    mean, std = (like.new_tensor(numbers)[None, :, None, None] for numbers in (params.latent_mean, params.latent_std))
    return mean, std
