"""What goes wrong with a run and that the user can put right."""

from mibfast._check import InputError


class RunError(InputError):
    """Settings, a run's folder or its training that cannot be used, said in one line."""


class DivergedError(RunError):
    """Training whose loss became infinite or NaN."""
