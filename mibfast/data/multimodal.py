"""Several views of the same samples, split for training, validation and testing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class MultimodalData:
    """Views of N samples, their labels, and which samples belong to which split.

    Attributes
    ----------
    name : str
    views : mapping from a modality's name to Tensor [N, features]
        float32, standardised by the training split's mean and standard deviation.
    labels : Tensor [N]
        int64.
    splits : mapping from "train", "validation" and "test" to Tensor [n]
        Indices of samples; every sample is in one split.
    """

    name: str
    views: Mapping[str, Tensor]
    labels: Tensor
    splits: Mapping[str, Tensor]

    def split(self, name: str) -> tuple[dict[str, Tensor], Tensor]:
        """Return the views and labels of one split."""
        if name not in self.splits:
            raise ValueError(f"unknown split {name!r}; expected one of {', '.join(map(repr, self.splits))}")
        chosen = self.splits[name]
        return {modality: view[chosen] for modality, view in self.views.items()}, self.labels[chosen]


def standardised(view: Tensor, train: Tensor) -> Tensor:
    """Shift and scale features by the training samples' mean and standard deviation; constant ones become zero."""
    mean, deviation = view[train].mean(0), view[train].std(0, correction=0)
    return (view - mean) / torch.where(deviation > 0, deviation, 1.0)


def load(name: str, seed: int = 0) -> MultimodalData:
    """Load a data set by its name.

    Parameters
    ----------
    name : {"digits"}
    seed : int
        Of the split.

    Raises
    ------
    ValueError
        For an unknown name.

    Examples
    --------
    >>> import mibfast.data
    >>> {name: tuple(view.shape) for name, view in mibfast.data.load("digits").views.items()}
    {'pixels': (1797, 64), 'frequencies': (1797, 40), 'profiles': (1797, 32)}
    """
    from mibfast.data.digits import digits

    known = {"digits": digits}
    if name not in known:
        raise ValueError(f"unknown data set {name!r}; expected one of {', '.join(map(repr, known))}")
    return known[name](seed)
