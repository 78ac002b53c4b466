"""An encoder of a user's own, which draws random numbers of three kinds."""

import random

import numpy as np
import torch
from torch import nn


class Encoder(nn.Module):
    def __init__(self, shape: tuple[int, ...], features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 32), nn.ReLU(), nn.Dropout(0.3))
        self.output = nn.Linear(32, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = random.random() * np.random.rand() if self.training else 0.0
        return self.output(self.layers(x)) + noise


def wrong_shape(shape: tuple[int, ...], features: int) -> nn.Module:
    return nn.Linear(shape[0], features + 1)


def no_module(shape: tuple[int, ...], features: int) -> str:
    return "no module"


def tied(shape: tuple[int, ...], features: int) -> nn.Module:
    layer = nn.Linear(shape[0], shape[0])
    return nn.Sequential(layer, layer, nn.Linear(shape[0], features))


def broken(shape: tuple[int, ...], features: int) -> nn.Module:
    raise ZeroDivisionError
