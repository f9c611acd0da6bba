"""What a run leaves to look at: metrics, pictures, a page, TensorBoard.

Imports `train.evaluation` and `train.run`; used by the loop.
"""

from typing import TYPE_CHECKING

from convert.faces import lazy_names

if TYPE_CHECKING:
    from train.report.html import write_report
    from train.report.metrics_log import Metrics, Reporter, read_metrics
    from train.report.pictures import save_comparisons, save_grid
    from train.report.tensorboard import TensorBoard, load_writer
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Metrics",
    "Reporter",
    "TensorBoard",
    "load_writer",
    "read_metrics",
    "save_comparisons",
    "save_grid",
    "write_report",
]
