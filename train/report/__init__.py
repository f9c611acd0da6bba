"""What a run leaves to look at: metrics, pictures, a page, TensorBoard.

Imports `train.evaluation` and `train.run`; used by the loop.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from train.report.html import write_report
    from train.report.metrics_log import Metrics, Reporter, read_metrics
    from train.report.pictures import save_comparisons, save_grid
    from train.report.tensorboard import TensorBoard, load_writer

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
