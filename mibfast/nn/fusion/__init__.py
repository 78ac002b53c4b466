"""Fusions of several modalities into one prediction, one file a method, under one interface."""

from mibfast.nn.fusion import losses
from mibfast.nn.fusion.c_mib import CMIB
from mibfast.nn.fusion.collapse import collapse_risks
from mibfast.nn.fusion.concatenation import Concatenation
from mibfast.nn.fusion.cross_attention import CrossAttention, CrossAttentionFusion
from mibfast.nn.fusion.deep_ib import DeepIB
from mibfast.nn.fusion.dmib import DMIB
from mibfast.nn.fusion.e_mib import EMIB
from mibfast.nn.fusion.film import FiLM
from mibfast.nn.fusion.gated import GatedFusion
from mibfast.nn.fusion.l_mib import LMIB
from mibfast.nn.fusion.misa import MISA
from mibfast.nn.fusion.mmib_cui import MMIBCui
from mibfast.nn.fusion.mmib_zhang import MMIBZhang
from mibfast.nn.fusion.model import FusionModel
from mibfast.nn.fusion.stochastic_encoder import StochasticEncoder
from mibfast.nn.fusion.tasks import AnomalyDetection, Classification, Regression, Task

__all__ = [
    "CMIB",
    "DMIB",
    "EMIB",
    "LMIB",
    "METHODS",
    "MISA",
    "AnomalyDetection",
    "Classification",
    "Concatenation",
    "CrossAttention",
    "CrossAttentionFusion",
    "DeepIB",
    "FiLM",
    "FusionModel",
    "GatedFusion",
    "MMIBCui",
    "MMIBZhang",
    "Regression",
    "StochasticEncoder",
    "Task",
    "collapse_risks",
    "losses",
]

METHODS: dict[str, type[FusionModel]] = {
    "concatenation": Concatenation,
    "gated": GatedFusion,
    "film": FiLM,
    "cross-attention": CrossAttentionFusion,
    "misa": MISA,
    "dmib": DMIB,
    "e-mib": EMIB,
    "l-mib": LMIB,
    "c-mib": CMIB,
    "deep-ib": DeepIB,
    "mmib-cui": MMIBCui,
    "mmib-zhang": MMIBZhang,
}
