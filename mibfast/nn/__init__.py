"""Encoders and projection heads."""

from mibfast.nn.mlp import MLPEncoder, ProjectionHead

__all__ = ["MLPEncoder", "ProjectionHead"]
