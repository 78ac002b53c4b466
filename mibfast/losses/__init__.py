"""Losses as modules of PyTorch.

`loss(embeddings)` gives the loss, `loss.terms(embeddings)` the named terms that make it up, before they are weighted;
:class:`InfoNCELoss` takes queries and keys instead.

**Reduction.** Losses that are made up of one value a sample take `reduction`: "none" gives these values, [N], or [M, N]
where each modality of a sample has a loss of its own; "sum" gives their sum and "mean", the default, what the paper
has. The others have no such values, and take none.

**Missing modalities.** Every loss takes `presence`, a bool tensor [N, M], True where sample n has modality m. Its
docstring says what it takes of samples that lack some. All else is not used, be it NaN, gets a gradient of exactly zero
and has a loss of zero under "none". The values of `presence` are read back from its device, which breaks the graph of
`torch.compile`: `fullgraph=True` takes none.
"""

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


def __dir__() -> list[str]:
    return __all__
