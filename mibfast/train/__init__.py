"""Training and evaluation: Lightning modules, probes, retrieval, run folders."""

from mibfast.train.alignment import AlignmentModule
from mibfast.train.config import RunConfig
from mibfast.train.errors import RunError
from mibfast.train.evaluation import evaluate
from mibfast.train.fitting import Run, fit, open_run
from mibfast.train.methods import METHODS

__all__ = ["METHODS", "AlignmentModule", "Run", "RunConfig", "RunError", "evaluate", "fit", "open_run"]
