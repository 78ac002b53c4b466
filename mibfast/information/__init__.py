"""Mutual information, in nats: critics, estimators that stream over all pairs, upper bounds, and an exact case."""

from mibfast.information import critics
from mibfast.information.critics import *  # noqa: F403
from mibfast.information.estimation import Estimate, EstimateWarning, estimate
from mibfast.information.estimators import CLIPTerms, MutualInformation, clip_terms
from mibfast.information.gaussian import gaussian_mutual_information
from mibfast.information.upper_bounds import club, leave_one_out

__all__ = [
    "CLIPTerms",
    "Estimate",
    "EstimateWarning",
    "MutualInformation",
    "clip_terms",
    "club",
    "estimate",
    "gaussian_mutual_information",
    "leave_one_out",
]
__all__ += critics.__all__
