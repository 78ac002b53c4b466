"""Encoders of sequences: one-dimensional convolutions, and an LSTM."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from mibfast import _check
from mibfast._modules import ResettableModule


class Conv1dEncoder(ResettableModule):
    """An encoder of sequences by convolutions over time: ReLU between them, a mean over time, one linear layer.

    Parameters
    ----------
    in_channels : int
        Number C of channels of a sequence.
    out_features : int
        Length of a representation.
    hidden_channels : int
    depth : int
        Number of convolutions, >= 1; each but the first halves the length.
    kernel_size : int
        Odd. Sequences may have any length T >= 1.

    Raises
    ------
    TypeError, ValueError
        For sizes that are not positive integers, or an even kernel size.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn import Conv1dEncoder
    >>> Conv1dEncoder(6, 256)(torch.zeros(8, 100, 6)).shape
    torch.Size([8, 256])
    """

    def __init__(
        self,
        in_channels: int,
        out_features: int = 256,
        hidden_channels: int = 128,
        depth: int = 3,
        kernel_size: int = 5,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        sizes = {
            "in_channels": in_channels,
            "out_features": out_features,
            "hidden_channels": hidden_channels,
            "depth": depth,
            "kernel_size": kernel_size,
        }
        for argument, size in sizes.items():
            _check.count(name, argument, size)
        if kernel_size % 2 == 0:
            raise ValueError(f"{name}: kernel_size must be odd, got {kernel_size}")
        layers: list[nn.Module] = []
        for position, (inputs, outputs) in enumerate(pairwise([in_channels, *[hidden_channels] * depth])):
            stride = 2 if position else 1
            layers += [nn.Conv1d(inputs, outputs, kernel_size, stride, kernel_size // 2), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.output = nn.Linear(hidden_channels, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Encode sequences [N, T, in_channels] to representations [N, out_features]."""
        result: Tensor = self.output(self.convolutions(x.transpose(1, 2)).mean(2))
        return result


class LSTMEncoder(ResettableModule):
    """An encoder of sequences by an LSTM: its last hidden state and one linear layer.

    Parameters
    ----------
    in_channels : int
        Number C of channels of a sequence.
    out_features : int
        Length of a representation.
    hidden_features : int
    depth : int
        Number of LSTM layers, >= 1.

    Raises
    ------
    TypeError, ValueError
        For sizes that are not positive integers.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn import LSTMEncoder
    >>> LSTMEncoder(6, 256)(torch.zeros(8, 100, 6)).shape
    torch.Size([8, 256])
    """

    def __init__(self, in_channels: int, out_features: int = 256, hidden_features: int = 128, depth: int = 1) -> None:
        super().__init__()
        name = type(self).__name__
        sizes = {"in_channels": in_channels, "out_features": out_features, "hidden_features": hidden_features}
        for argument, size in {**sizes, "depth": depth}.items():
            _check.count(name, argument, size)
        self.lstm = nn.LSTM(in_channels, hidden_features, depth, batch_first=True)
        self.output = nn.Linear(hidden_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Encode sequences [N, T, in_channels] to representations [N, out_features]."""
        _, (hidden, _) = self.lstm(x)
        result: Tensor = self.output(hidden[-1])
        return result
