"""Converts between raw latents and the latents that diffusion models are trained on.

Twins: `torch_ref.latents` and `flax_vae.latents`.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

NORM_EPS = 1e-4


class LatentNorm(nn.Module):
    """Normalises latents as FLUX.2 does: gathers 2 x 2 patches into channels and uses running statistics.

    The statistics are buffers: part of the weights, and not trained.

    Attributes:
      channels: Channels of the patched latent, `4 * z_channels`, in the order `(c pi pj)`.

    Source: black-forest-labs/flux2 `autoencoder.py`; diffusers `AutoencoderKLFlux2`.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int):
        super().__init__()
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
        return torch.sqrt(self.running_var[None, :, None, None] + NORM_EPS)
