"""A clamp that does not hold what it has caught."""

from mibfast.ops._bounded import bounded

__all__ = ["bounded"]
