"""Training and evaluation: Lightning modules, probes, retrieval, run folders."""

from mibfast.train.alignment import AlignmentModule
from mibfast.train.config import RunConfig
from mibfast.train.errors import DivergedError, RunError
from mibfast.train.evaluation import evaluate
from mibfast.train.fitting import Run, fit, open_run
from mibfast.train.fusion import FusionModule
from mibfast.train.methods import ALIGNMENTS, FUSIONS, METHODS

__all__ = [
    "ALIGNMENTS",
    "FUSIONS",
    "METHODS",
    "AlignmentModule",
    "DivergedError",
    "FusionModule",
    "Run",
    "RunConfig",
    "RunError",
    "evaluate",
    "fit",
    "open_run",
]
