"""Evaluation of trained runs: probes and retrieval for alignments, scores of predictions, and embeddings as files."""

from mibfast.train.evaluation.evaluation import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
