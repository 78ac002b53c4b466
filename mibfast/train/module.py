"""What all that is trained shares: encoders by modality, an optimizer, a stage; and weights that fit into memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TypeVar

import lightning
import torch
from torch import Tensor, nn

from mibfast.data.opening import why_no_memory
from mibfast.train.errors import RunError

_Module = TypeVar("_Module", bound=nn.Module)


class MultimodalModule(lightning.LightningModule):
    """A Lightning module of several modalities.

    A batch is a mapping from a modality's name to its samples, as they came: an encoder standardises them itself.

    Parameters
    ----------
    learning_rate, weight_decay : float
        Of AdamW.

    Attributes
    ----------
    stage : str
        Of training, set at the beginning of each epoch.
    """

    def __init__(self, learning_rate: float, weight_decay: float) -> None:
        super().__init__()
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.stage = "main"

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in order."""
        raise NotImplementedError

    def represent(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the representation [N, features] of each modality in `views`, as its encoder makes it."""
        raise NotImplementedError

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over all parameters, the loss's among them."""
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)


def sketched(make: Callable[[], _Module]) -> _Module:
    """Make a module without memory for its weights: what there are, and of which shapes."""
    with torch.device("meta"), warnings.catch_warnings():
        # They are said when it is made.
        warnings.simplefilter("ignore")
        return make()


def built(make: Callable[[], _Module]) -> _Module:
    """Make a module; RunError where its weights take more memory than is free, before any of it is taken."""
    refuse_more_than_memory(sketched(make))
    return make()


def refuse_more_than_memory(sketch: nn.Module) -> None:
    """Raise RunError where the weights of a module take more memory than is free."""
    why = why_no_memory(sum(x.numel() * x.element_size() for x in (*sketch.parameters(), *sketch.buffers())))
    if why is not None:
        raise RunError(f"{type(sketch).__name__}: {why}; ask for fewer features or smaller hidden layers")
