"""Fusions of several modalities into one prediction, one file a method, under one interface."""

from mibfast.nn.fusion.concatenation import Concatenation
from mibfast.nn.fusion.cross_attention import CrossAttention, CrossAttentionFusion
from mibfast.nn.fusion.film import FiLM
from mibfast.nn.fusion.gated import GatedFusion
from mibfast.nn.fusion.model import FusionModel
from mibfast.nn.fusion.tasks import AnomalyDetection, Classification, Regression, Task

__all__ = [
    "METHODS",
    "AnomalyDetection",
    "Classification",
    "Concatenation",
    "CrossAttention",
    "CrossAttentionFusion",
    "FiLM",
    "FusionModel",
    "GatedFusion",
    "Regression",
    "Task",
]

METHODS: dict[str, type[FusionModel]] = {
    "concatenation": Concatenation,
    "gated": GatedFusion,
    "film": FiLM,
    "cross-attention": CrossAttentionFusion,
}
