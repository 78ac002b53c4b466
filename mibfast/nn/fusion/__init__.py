"""Fusions of several modalities into one prediction, one file a method, under one interface."""

from mibfast.nn.fusion.concatenation import Concatenation
from mibfast.nn.fusion.model import FusionModel
from mibfast.nn.fusion.tasks import AnomalyDetection, Classification, Regression, Task

__all__ = ["AnomalyDetection", "Classification", "Concatenation", "FusionModel", "Regression", "Task"]
