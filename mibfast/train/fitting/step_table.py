"""Terms of a loss: running means of an epoch, and a table of every step in a bounded number of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Rows of the table, at most.
_STEPS = 4096


class Means:
    """Running means of named terms."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, terms: Mapping[str, float]) -> None:
        """Add terms, the same ones each time."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def values(self) -> dict[str, float]:
        """Return the mean of each term."""
        return {name: value / self.count for name, value in self.sums.items()}

    def state(self) -> dict[str, Any]:
        """Return what :meth:`restore` takes."""
        return {"sums": self.sums, "count": self.count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        self.sums, self.count = dict(state["sums"]), int(state["count"])


class StepTable:
    """Terms of every step in a bounded number of rows, each the mean over the same number of steps.

    That number doubles whenever the table is full. Steps after the last full row wait for the next.

    Parameters
    ----------
    limit : int
        Of rows; even.

    Attributes
    ----------
    rows : list of dict
        `step`, the row's last one, and the mean of each term.

    Examples
    --------
    >>> from mibfast.train.fitting.step_table import StepTable
    >>> table = StepTable(limit=4)
    >>> for step in range(1, 7):
    ...     table.add(step, {"loss": float(step)})
    >>> table.rows
    [{'step': 2, 'loss': 1.5}, {'step': 4, 'loss': 3.5}, {'step': 6, 'loss': 5.5}]
    """

    def __init__(self, limit: int = _STEPS) -> None:
        self._limit, self._stride = limit, 1
        self._open = Means()
        self.rows: list[dict[str, float]] = []

    def add(self, step: int, terms: Mapping[str, float]) -> None:
        """Add a step's terms; the same ones each time."""
        self._open.add(terms)
        if self._open.count < self._stride:
            return
        self.rows.append({"step": step, **self._open.values()})
        self._open = Means()
        if len(self.rows) == self._limit:
            self.rows = list(map(_merged, self.rows[::2], self.rows[1::2]))
            self._stride *= 2

    def state(self) -> dict[str, Any]:
        """Return what :meth:`restore` takes."""
        return {"rows": self.rows, "stride": self._stride, "open": self._open.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        self.rows, self._stride = list(state["rows"]), int(state["stride"])
        self._open.restore(state["open"])


def _merged(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    return {name: second[name] if name == "step" else (first[name] + second[name]) / 2 for name in first}
