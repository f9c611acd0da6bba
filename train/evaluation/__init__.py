"""Evaluates models: scores of whole images, statistics of latents, rFID.

Imports `flax_vae.train.losses` and `flax_vae.inference`; used by the loop and by `flax-vae-train eval`.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.train.evaluation.components import PrincipalComponents
    from flax_vae.train.evaluation.equivariance import equivariance_psnr
    from flax_vae.train.evaluation.fid import FrechetMeter, load_extractor
    from flax_vae.train.evaluation.measured_scale import (
        check_normalisable,
        check_scalable,
        write_scale,
        write_statistics,
    )
    from flax_vae.train.evaluation.tables import (
        badness,
        comparison,
        equivariance_line,
        latent_lines,
        rfid_line,
        table,
        write_report_json,
    )
    from flax_vae.train.evaluation.validation import LOGGED_AS, MORE_IS_BETTER, BestScore, Validation
    from flax_vae.train.evaluation.whole_images import SCORES, Evaluation, PerceptualDistance, perceptual_distance
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "BestScore",
    "Evaluation",
    "FrechetMeter",
    "LOGGED_AS",
    "MORE_IS_BETTER",
    "PerceptualDistance",
    "PrincipalComponents",
    "SCORES",
    "Validation",
    "badness",
    "check_normalisable",
    "check_scalable",
    "comparison",
    "equivariance_line",
    "equivariance_psnr",
    "latent_lines",
    "load_extractor",
    "perceptual_distance",
    "rfid_line",
    "table",
    "write_report_json",
    "write_scale",
    "write_statistics",
]
