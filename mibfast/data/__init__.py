"""Data sets of several views of the same samples."""

from mibfast.data.multimodal import DataError, MultimodalData
from mibfast.data.sources import from_arrays, load

__all__ = ["DataError", "MultimodalData", "from_arrays", "load"]
