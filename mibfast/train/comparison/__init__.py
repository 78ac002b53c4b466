"""Methods compared on one data set: tuned alike, trained with several seeds, and tested."""

from mibfast.train.comparison.comparison import compare
from mibfast.train.comparison.results import Comparison
from mibfast.train.comparison.settings import grid

__all__ = ["Comparison", "compare", "grid"]
