"""Mutual information, in nats: critics, estimators that stream over all pairs, upper bounds, and an exact case."""

from mibfast.information.critics import BilinearCritic, ConcatenatedCritic, CosineCritic, SeparableCritic
from mibfast.information.estimation import Estimate, EstimateWarning, estimate
from mibfast.information.estimators import CLIPTerms, MutualInformation, clip_terms
from mibfast.information.gaussian import gaussian_mutual_information
from mibfast.information.upper_bounds import club, leave_one_out

__all__ = [
    "BilinearCritic",
    "CLIPTerms",
    "ConcatenatedCritic",
    "CosineCritic",
    "Estimate",
    "EstimateWarning",
    "MutualInformation",
    "SeparableCritic",
    "clip_terms",
    "club",
    "estimate",
    "gaussian_mutual_information",
    "leave_one_out",
]
