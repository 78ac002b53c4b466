"""Encoders and projection heads."""

from mibfast.nn.mlp import MLPEncoder, ProjectionHead
from mibfast.nn.sequences import Conv1dEncoder, LSTMEncoder
from mibfast.nn.standardisation import Standardisation

__all__ = ["Conv1dEncoder", "LSTMEncoder", "MLPEncoder", "ProjectionHead", "Standardisation"]
