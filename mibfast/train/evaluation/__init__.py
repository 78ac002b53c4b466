"""What a trained run is worth: probes and retrieval of alignments, scores of predictions, and embeddings as files."""

from mibfast.train.evaluation.evaluation import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
