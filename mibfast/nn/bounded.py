"""A clamp whose gradient leads back inside its bounds."""

from mibfast.ops._bounded import bounded

__all__ = ["bounded"]
