"""The deep variational multivariate information bottleneck: two graphs in, a loss out."""

from mibfast.bottleneck import methods
from mibfast.bottleneck.encoders import GaussianEncoder, GaussianHeads
from mibfast.bottleneck.formulation import Bottleneck, Term
from mibfast.bottleneck.loss import BottleneckLoss

__all__ = ["Bottleneck", "BottleneckLoss", "GaussianEncoder", "GaussianHeads", "Term", "methods"]
