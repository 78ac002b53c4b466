"""Encoders, decoders and projection heads."""

from mibfast.nn.images import Conv2dDecoder, Conv2dEncoder, ResNet18Encoder
from mibfast.nn.mlp import MLPEncoder, ProjectionHead
from mibfast.nn.sequences import Conv1dEncoder, LSTMEncoder
from mibfast.nn.standardisation import Standardisation

__all__ = [
    "Conv1dEncoder",
    "Conv2dDecoder",
    "Conv2dEncoder",
    "LSTMEncoder",
    "MLPEncoder",
    "ProjectionHead",
    "ResNet18Encoder",
    "Standardisation",
]
