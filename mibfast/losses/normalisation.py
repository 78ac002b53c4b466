"""L2 normalisation of embeddings before a loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mibfast import _check
from mibfast._check import Embeddings


def unit_embeddings(operation: str, embeddings: Embeddings, normalize: bool) -> tuple[list[Tensor], list[str]]:
    """Check embeddings, make their rows unit where asked (rows of zeros stay), and return them with their names."""
    z, names = _check.embeddings(operation, embeddings)
    return (unit(z) if normalize else z), names


def unit(z: Sequence[Tensor]) -> list[Tensor]:
    """Divide rows by their Euclidean norm; rows of zeros stay zero. The norm is formed in float32 at least."""
    return [_unit(x) for x in z]


def _unit(x: Tensor) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    return torch.nn.functional.normalize(wide, dim=-1, eps=torch.finfo(wide.dtype).tiny).to(x.dtype)
