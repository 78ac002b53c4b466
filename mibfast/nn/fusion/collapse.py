"""What lets a network that is trained on normal samples alone collapse to a constant."""

from __future__ import annotations

from torch import nn

from mibfast import _check

# Their output is bounded: a unit that is saturated for all samples is as good as a bias.
_BOUNDED = (
    nn.Sigmoid,
    nn.Tanh,
    nn.Softsign,
    nn.Hardsigmoid,
    nn.Hardtanh,  # ReLU6 is one
    nn.Softmax,
)


def collapse_risks(module: nn.Module) -> list[str]:
    """Name what lets a network map every sample to the centre: biases and bounded activations (Ruff et al., 2018, 3.3).

    Examples
    --------
    >>> from torch import nn
    >>> from mibfast.nn import fusion
    >>> fusion.collapse_risks(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2, bias=False)))
    ['the bias of 0', '1, a Tanh']
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"collapse_risks: module must be an nn.Module, got {_check.described(module)}")
    biases = [name.rpartition(".")[0] for name, _ in module.named_parameters() if _is_bias(name)]
    bounded = [
        f"{name or 'the module'}, a {type(each).__name__}"
        for name, each in module.named_modules()
        if isinstance(each, _BOUNDED)
    ]
    return [f"the bias of {name or 'the module'}" for name in dict.fromkeys(biases)] + bounded


def _is_bias(name: str) -> bool:
    # Those of recurrent layers are bias_ih_l0, bias_hh_l0 and so on.
    return name.rpartition(".")[2].startswith(("bias", "in_proj_bias"))
