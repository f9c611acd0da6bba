"""What a run would take: a dry run here, or its step compiled for devices that are elsewhere.

Imports `train.build` and `train.devices`; used by the commands.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from train.plan.compile import find_fitting, plan
    from train.plan.dry_run import describe_run
    from train.plan.table import LEGEND, rows
    from train.plan.topologies import Target, local, topology

__all__ = ["LEGEND", "Target", "describe_run", "find_fitting", "local", "plan", "rows", "topology"]
