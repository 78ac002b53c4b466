"""Training and evaluation of alignments and fusions, as runs in folders.

`fitting` trains one method, `evaluation` scores a run, `comparison` ranks methods, `experiments` holds fixed studies;
each may import from those before it. The modules beside these folders serve all of them.
"""

from mibfast.train.errors import DivergedError, RunError
from mibfast.train.evaluation import evaluate
from mibfast.train.fitting import Run, fit, open_run
from mibfast.train.fitting.config import RunConfig
from mibfast.train.fitting.modules import AlignmentModule, FusionModule
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
