"""OMIB: fusion of any number of modalities into what is relevant to a task, and the bounds of its beta."""

from mibfast.nn.fusion import CrossAttention, collapse_risks
from mibfast.omib.bounds import BetaEstimate, beta_bounds, estimate_beta
from mibfast.omib.model import OMIB, Predictor, omf_loss
from mibfast.omib.svdd import anomaly_threshold, f1_at_true_count, svdd_loss
from mibfast.omib.weights import modality_weights

__all__ = [
    "OMIB",
    "BetaEstimate",
    "CrossAttention",
    "Predictor",
    "anomaly_threshold",
    "beta_bounds",
    "collapse_risks",
    "estimate_beta",
    "f1_at_true_count",
    "modality_weights",
    "omf_loss",
    "svdd_loss",
]
