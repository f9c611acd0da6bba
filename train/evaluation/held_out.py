"""Scores the image that a run holds out while the run trains, as `flax-vae-train eval` scores the finished model."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from flax_vae import AutoEncoder
from flax_vae.images import Comparison, ImageSource
from flax_vae.train.config import TrainConfig
from flax_vae.train.evaluation.whole_images import Evaluation, perceptual_distance


class HeldOutEvaluation:
    """Evaluates parameters on the held-out image, whole, on one device of this process."""

    def __init__(
        self, config: TrainConfig, source: ImageSource, device: Any, lpips_weights: dict[str, Any] | None = None
    ):
        """Reads the image and compiles nothing yet.

        Args:
          config: Settings of the run: architecture, time to evaluate at, network of LPIPS.
          source: Source of the held-out image alone; see `flax_vae.train.data.held_out_image`.
          device: Device that computes.
          lpips_weights: Weights of the network of LPIPS; None measures no LPIPS.
        """
        self._source, self._image, self._device = source, source[0], device
        weights = None if lpips_weights is None else jax.device_put(lpips_weights, device)
        # float32, whatever the dtype of the run: the exported model is evaluated in it.
        self._evaluation = Evaluation(
            AutoEncoder(config.model, dtype=jnp.float32),
            params={},
            time=config.time.evaluate_at,
            perceptual=None if weights is None else perceptual_distance(weights, config.loss.lpips_net),
        )

    def __call__(self, params: Any) -> Comparison:
        """Reconstructs the image and compares it with the original.

        Args:
          params: Parameters on the devices of this process; see `Parallel.gather`.

        Raises:
          NotFiniteError: If the reconstruction holds NaN or infinite values.
        """
        evaluation = replace(self._evaluation, params=jax.device_put(params, self._device))
        with jax.transfer_guard("allow"):  # the training loop forbids implicit transfers
            (comparison,), _ = evaluation.compare(self._source, [0], self._image[None])
        return comparison
