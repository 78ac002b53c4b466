"""Data sets of several views of the same samples."""

from mibfast.data.digits import digits
from mibfast.data.multimodal import MultimodalData, load

__all__ = ["MultimodalData", "digits", "load"]
