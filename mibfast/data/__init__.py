"""Data sets of several views of the same samples."""

from mibfast.data.arrays import from_arrays
from mibfast.data.multimodal import DataError, MultimodalData
from mibfast.data.sources import FORMS, load

__all__ = ["FORMS", "DataError", "MultimodalData", "from_arrays", "load"]
