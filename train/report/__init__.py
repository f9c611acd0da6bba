"""Reports of a run: metrics, images, HTML pages, TensorBoard, Weights & Biases.

Imports `flax_vae.train.devices`, `flax_vae.train.evaluation` and `flax_vae.train.run`; used by the loop.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.train.report.compare import write_run_comparison
    from flax_vae.train.report.html import write_report
    from flax_vae.train.report.loggers import Loggers, chosen_loggers, require_loggers
    from flax_vae.train.report.metrics_log import Metrics, Reporter, read_metrics
    from flax_vae.train.report.pictures import save_comparisons, save_components
    from flax_vae.train.report.speed import Speed
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Loggers",
    "Metrics",
    "Reporter",
    "Speed",
    "chosen_loggers",
    "read_metrics",
    "require_loggers",
    "save_comparisons",
    "save_components",
    "write_report",
    "write_run_comparison",
]
