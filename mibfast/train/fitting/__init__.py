"""Training of one method: settings, Lightning modules, batches, a run that can be interrupted, and opened again."""

from mibfast.train.fitting.opening import open_run
from mibfast.train.fitting.run import Run
from mibfast.train.fitting.training import fit

__all__ = ["Run", "fit", "open_run"]
