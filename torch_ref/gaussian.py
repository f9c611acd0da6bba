"""The diagonal Gaussian between encoder and decoder.

Twins: `torch_ref.gaussian` and `flax_vae.gaussian`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flax_vae.convert.architecture import LOGVAR_MAX, LOGVAR_MIN, check_noise


@dataclass(frozen=True)
class Posterior:
    """Posterior of raw, unscaled latents: one mean and variance per latent value.

    Attributes:
      mean: Mean, `b z h w`.
      logvar: Natural logarithm of the variance, `b z h w`.

    Examples:
      >>> posterior = Posterior(mean=torch.ones(1, 4, 2, 2), logvar=torch.zeros(1, 4, 2, 2))
      >>> posterior.sample().shape
      torch.Size([1, 4, 2, 2])
      >>> posterior.kl()
      tensor([8.])
    """

    mean: Float[Tensor, "b z h w"]
    logvar: Float[Tensor, "b z h w"]

    @property
    def std(self) -> Float[Tensor, "b z h w"]:
        """Standard deviation, with the shape of the mean."""
        return torch.exp(0.5 * self.logvar)

    def mode(self) -> Float[Tensor, "b z h w"]:
        """Returns the most probable latent, which is the mean."""
        return self.mean

    def sample(
        self, generator: torch.Generator | None = None, *, noise: Float[Tensor, "b z h w"] | None = None
    ) -> Float[Tensor, "b z h w"]:
        """Returns a latent sampled with PyTorch's generator, or `mean + std * noise` with the given noise.

        Args:
          generator: Random number generator on the device of the mean; None takes PyTorch's own.
          noise: Standard normal noise, with the shape of the mean; None draws it.
        """
        if noise is None:
            noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + self.std * noise

    def kl(self) -> Float[Tensor, " b"]:
        """Returns the KL divergence from the standard normal, in nats per image: `0.5 * sum(mean² + var - 1 - logvar)`.

        Source: Kingma & Welling 2014, appendix B; CompVis/latent-diffusion `distributions.py`.
        """
        return 0.5 * torch.sum(self.mean**2 + torch.exp(self.logvar) - 1.0 - self.logvar, dim=(1, 2, 3))


class DiagonalGaussian(nn.Module):
    """Splits moments into mean and logvar and samples a latent.

    Attributes:
      sample: Whether a call samples; otherwise it returns the mean.
      chunk_dim: Axis along which mean and logvar are concatenated.
      learnable_logvar: Whether a learned scalar `logvar_scaling` is *added* to logvar; it multiplies the variance by
        `exp(logvar_scaling)`.
      clamp_logvar: Whether logvar is then limited to [-30, 20].

    Source: seed module 7; the limits are CompVis/latent-diffusion's, `distributions.py`.
    """

    def __init__(
        self, sample: bool = True, chunk_dim: int = 1, learnable_logvar: bool = False, clamp_logvar: bool = False
    ):
        super().__init__()
        self.sample = sample
        self.chunk_dim = chunk_dim
        self.learnable_logvar = learnable_logvar
        self.clamp_logvar = clamp_logvar
        if learnable_logvar:
            self.logvar_scaling = nn.Parameter(torch.zeros(1))

    def posterior(self, moments: Float[Tensor, "b 2*z h w"]) -> Posterior:
        """Returns the posterior of moments.

        Args:
          moments: Means and logvars, one after the other along the channels.
        """
        mean, logvar = torch.chunk(moments, 2, dim=self.chunk_dim)
        if self.learnable_logvar:
            logvar = logvar + self.logvar_scaling
        if self.clamp_logvar:
            logvar = torch.clamp(logvar, LOGVAR_MIN, LOGVAR_MAX)
        return Posterior(mean, logvar)

    def forward(
        self,
        moments: Float[Tensor, "b 2*z h w"],
        *,
        sample: bool | None = None,
        noise: Float[Tensor, "b z h w"] | None = None,
    ) -> Float[Tensor, "b z h w"]:
        """Returns a raw latent: a sample (with the given `noise`, if any), or the mean.

        Args:
          moments: Mean and logvar, concatenated along `chunk_dim`.
          sample: Whether to sample; None uses the attribute.
          noise: Standard normal noise with the shape of the latent.

        Raises:
          ValueError: If `noise` has another shape, or is given without sampling.
        """
        posterior = self.posterior(moments)
        sample = self.sample if sample is None else sample
        check_noise(None if noise is None else tuple(noise.shape), sample, tuple(posterior.mean.shape))
        return posterior.sample(noise=noise) if sample else posterior.mode()
