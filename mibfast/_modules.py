"""Modules that can be given their initial parameters again, as those must be that were made on the meta device."""

from __future__ import annotations

from torch import nn


class ResettableModule(nn.Module):
    """A module whose parts give its parameters their initial values: the same again where the seed is the same."""

    def reset_parameters(self) -> None:
        """Give all parameters initial values, drawn in the order of the constructor.

        A module made under `torch.device("meta")` needs it after `to_empty`. TypeError for a part that has parameters
        and cannot do so.
        """
        for part in self.children():
            reset(part)


def reset(module: nn.Module) -> None:
    """Give a module's parameters initial values, by what it or its parts have for that."""
    own = getattr(module, "reset_parameters", None)
    if own is not None:
        own()
        return
    for part in module.children():
        reset(part)
    # Of PyTorch's attention, which adds to what its parts have drawn.
    rest = getattr(module, "_reset_parameters", None)
    if rest is not None:
        rest()
    elif next(module.parameters(recurse=False), None) is not None:
        raise TypeError(f"reset_parameters: {type(module).__name__} has parameters and no reset_parameters")
