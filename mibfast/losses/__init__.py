"""Losses as modules: `forward(embeddings)` gives a scalar, `terms(embeddings)` its named parts."""

from mibfast.losses.info_nce import InfoNCELoss
from mibfast.losses.ova_ib import OVAIBLoss
from mibfast.losses.pairwise_clip import PairwiseCLIPIBLoss, PairwiseCLIPLoss
from mibfast.losses.siglip import SigLIPLoss

__all__ = ["InfoNCELoss", "OVAIBLoss", "PairwiseCLIPIBLoss", "PairwiseCLIPLoss", "SigLIPLoss"]
