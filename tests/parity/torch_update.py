"""One update of an autoencoder and its discriminator in PyTorch.

Only the config comes from `train`.  The loss is that of CompVis/latent-diffusion `contperceptual.py`, and the
optimisers are PyTorch's.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_ref
import torch_ref.discriminator
from flax_vae.train.config.schema import OptimConfig, TrainConfig

DISTANCES = {"l1": F.l1_loss, "mse": F.mse_loss}


class TorchTrainer:
    """Everything that an update changes.

    Attributes:
      config: Settings of the run.
      model: Autoencoder.
      discriminator: Discriminator, or None.
      perceptual: Function that returns the distance of each pair of images, or None.
      logvar: Log-variance of the reconstruction.
      ema: Moving averages of the trained weights, by name.
      step: Number of updates so far.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: torch_ref.AutoEncoder,
        discriminator: torch_ref.discriminator.Discriminator | None,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None,
        logvar: Tensor,
    ):
        self.config, self.model, self.discriminator = config, model.requires_grad_(True), discriminator
        self.perceptual, self.step, self.d_step = perceptual, 0, 0
        if config.trainable == "decoder":
            model.encoder.requires_grad_(False)
        self.logvar = logvar.requires_grad_(config.loss.learn_logvar)
        self.trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.ema = {name: weight.detach().clone() for name, weight in self.trained.items()}

        self.weights = [*self.trained.values(), *([self.logvar] if config.loss.learn_logvar else [])]
        optim, gan = config.optim, config.gan
        groups = [
            {"params": [weight for weight in self.weights if weight.ndim > 1], "weight_decay": optim.weight_decay},
            {"params": [weight for weight in self.weights if weight.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(optim.b1, optim.b2))
        if discriminator is not None:
            discriminator.requires_grad_(True).train()
            self.d_weights = list(discriminator.parameters())
            self.d_optimizer = torch.optim.Adam(self.d_weights, betas=(gan.b1, gan.b2))

    def update(self, images: Tensor, noise: Tensor) -> dict[str, float]:
        """Updates autoencoder and discriminator from the reconstructions of one batch; returns the scores."""
        config, parts = self.config, self.config.optim.accumulate
        active = self.discriminator is not None and self.step >= config.gan.start
        scores: dict[str, float] = defaultdict(float)
        if self.discriminator is not None:
            self.d_optimizer.zero_grad()
        for weight in self.weights:
            weight.grad = torch.zeros_like(weight)
        adversarial = [torch.zeros_like(weight) for weight in self.weights]
        for part in range(parts):
            terms = self._accumulate(images[part::parts], noise[part::parts], active, adversarial)
            for name, term in terms.items():
                scores[name] += term.item() / parts
        if active:
            scores["d_weight"] = self._add(adversarial)

        scores["grad_norm"] = clip(self.weights, config.optim.clip_norm)
        scores["learning_rate"] = descend(self.optimizer, config.optim.learning_rate, self.step, config.optim)
        decay = min(config.optim.ema_decay, (1 + self.step) / (10 + self.step))
        for name, average in self.ema.items():
            average.mul_(decay).add_(self.trained[name].detach(), alpha=1 - decay)
        if active:
            scores["d_grad_norm"] = clip(self.d_weights, float("inf"))
            descend(self.d_optimizer, config.gan.learning_rate, self.d_step, config.optim)
            self.d_step += 1
        self.step += 1
        return scores

    def _add(self, adversarial: list[Tensor]) -> float:
        """Adds the weighted gradients of the adversarial loss to those of the others; returns the weight."""
        gan = self.config.gan
        weight = torch.tensor(gan.weight, dtype=adversarial[0].dtype)
        if gan.adaptive:
            # The divergence has no gradient here, so these are the reconstruction's and the adversarial loss's.
            (last,) = (i for i, weight in enumerate(self.weights) if weight is self.model.decoder.conv_out.weight)
            of_nll, of_g = self.weights[last].grad, adversarial[last]
            assert of_nll is not None
            weight = weight * torch.clamp(of_nll.norm() / (of_g.norm() + 1e-4), 0.0, 1e4)
        for leaf, gradient in zip(self.weights, adversarial, strict=True):
            assert leaf.grad is not None
            leaf.grad += weight * gradient
        return weight.item()

    def _accumulate(self, images: Tensor, noise: Tensor, active: bool, adversarial: list[Tensor]) -> dict[str, Tensor]:
        """Accumulates the gradients of one part of the batch; returns the terms of the losses."""
        config, share = self.config.loss, 1 / self.config.optim.accumulate
        posterior = self.model.posterior(images)
        latents = self.model.scale(posterior.sample(noise=noise))
        fake = self.model.decode(latents)

        # The autoencoder's own loss
        count = len(images)
        distance = DISTANCES[config.distance](fake, images, reduction="none")
        terms = {config.distance: distance.mean(), "logvar": self.logvar}
        if self.perceptual is not None:
            perceptual = self.perceptual(fake, images)
            distance = distance + config.lpips_weight * perceptual[:, None, None, None]
            terms["lpips"] = perceptual.mean()
        nll = (distance / self.logvar.exp() + self.logvar).sum() / count
        kl = terms["kl"] = posterior.kl().sum() / count
        scale = 1.0 if config.reduction == "sum" else 1 / images[0].numel()
        loss = terms["loss"] = scale * (nll + config.kl_weight * kl)
        if not active:
            (loss * share).backward(inputs=self.weights)
            return terms

        # The adversarial loss
        assert self.discriminator is not None
        gan, hinge = self.config.gan, self.config.gan.loss == "hinge"
        logits = self.discriminator(fake)
        g_loss = terms["g_loss"] = -logits.mean() if hinge else F.softplus(-logits).mean()
        (loss * share).backward(inputs=self.weights, retain_graph=True)
        found = torch.autograd.grad(g_loss * share, self.weights, allow_unused=True, materialize_grads=True)
        for total, gradient in zip(adversarial, found, strict=True):
            total += gradient

        # The discriminator's own loss
        real, fake = self.discriminator(images), self.discriminator(fake.detach())
        if hinge:
            d_loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        else:
            d_loss = 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
        terms |= {"d_loss": d_loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
        if gan.r1:
            terms["r1"] = self._r1(images)
            d_loss = d_loss + gan.r1 / 2 * terms["r1"]
        (d_loss * share).backward(inputs=self.d_weights)
        return terms

    def _r1(self, images: Tensor) -> Tensor:
        """Returns the R1 penalty, the squared norm of the gradient at real images; keeps the running statistics."""
        assert self.discriminator is not None
        images = images.clone().requires_grad_(True)
        copies = {name: buffer.clone() for name, buffer in self.discriminator.named_buffers()}
        logits = torch.func.functional_call(self.discriminator, copies, (images,))
        (slopes,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        return slopes.square().sum((1, 2, 3)).mean()


def clip(weights: Iterable[nn.Parameter | Tensor], max_norm: float) -> float:
    """Clips the gradients to a global norm; returns the norm before.

    `torch.nn.utils.clip_grad_norm_` adds 1e-6 to the norm that it divides by, which is visible in float64.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    for gradient in gradients:
        gradient.mul_(torch.clamp(max_norm / norm, max=1.0))
    return norm.item()


def descend(optimizer: torch.optim.Optimizer, peak: float, step: int, config: OptimConfig) -> float:
    """Takes an optimiser step at the rate of a linear warm-up followed by a constant; returns the rate."""
    rate = peak * min((step + 1) / config.warmup_steps, 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return rate
