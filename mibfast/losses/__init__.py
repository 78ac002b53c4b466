"""Losses as modules: `forward(embeddings)` gives a scalar, `terms(embeddings)` its named parts."""

from mibfast.losses.barlow_twins import BarlowTwinsLoss
from mibfast.losses.info_nce import InfoNCELoss
from mibfast.losses.learned_projector import LearnedProjectorOVAIBLoss
from mibfast.losses.ova_ib import OVAIBLoss
from mibfast.losses.pairwise_clip import PairwiseCLIPIBLoss, PairwiseCLIPLoss
from mibfast.losses.siglip import SigLIPLoss
from mibfast.losses.symile import SymileLoss
from mibfast.losses.volume import GRAMLoss, TRIANGLELoss

__all__ = [
    "BarlowTwinsLoss",
    "GRAMLoss",
    "InfoNCELoss",
    "LearnedProjectorOVAIBLoss",
    "OVAIBLoss",
    "PairwiseCLIPIBLoss",
    "PairwiseCLIPLoss",
    "SigLIPLoss",
    "SymileLoss",
    "TRIANGLELoss",
]
