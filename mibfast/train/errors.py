"""Errors about runs that the user can put right."""

from mibfast._check import InputError


class RunError(InputError):
    """An error in settings, a run's folder or its training, in one line."""


class DivergedError(RunError):
    """A training loss that became infinite or NaN."""
