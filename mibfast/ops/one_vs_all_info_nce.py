"""One-vs-all InfoNCE of OVA-IB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mibfast import _backend, _check
from mibfast._check import Embeddings
from mibfast._precision import unit
from mibfast.kernels.launch_configuration import LARGEST_K, LARGEST_M
from mibfast.kernels.one_vs_all import reference
from mibfast.kernels.pairwise import reference as pairwise
from mibfast.ops._boundary import (
    StreamedLoss,
    accumulation_dtype,
    inverse_temperature,
    pairwise_offers,
    reduced,
    temperature_tensor,
)
from mibfast.ops.info_nce import info_nce
from mibfast.ops.leave_one_out_projection import leave_one_out_projection

__all__ = ["one_vs_all_info_nce"]

_NAME = "one_vs_all_info_nce"
_KEYS = ("per_sample", "pairwise")


def one_vs_all_info_nce(
    embeddings: Embeddings,
    temperature: float | Tensor = 0.01,
    ridge: float = 1e-8,
    *,
    keys: str = "per_sample",
    positive_in_denominator: bool = False,
    reduction: str = "mean",
    presence: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""InfoNCE of each modality against the span of all the others, by ridge projection.

    .. math:: \ell_n^{(m)} = \log \sum_{n' \ne n} e^{s_{nn'}^{(m)} / \tau} - s_{nn}^{(m)} / \tau

    OVA-IB (arXiv 2605.29900), Eq. 9-12, with the score as the cosine of a query :math:`z_n^{(m)}` with

    - `keys="per_sample"`: the projection of :math:`z_{n'}^{(m)}` on the others of sample n', one key a sample: the
      paper's cost, and what its text describes;
    - `keys="pairwise"`: the projection of the query itself on the others of sample n': the score that retrieval needs,
      where the target of the query is unknown. M - 1 times the work.

    Both agree on the positives. With M = 2 this is not CLIP: positives are absolute cosines, so antipodal pairs count
    as aligned. Embeddings need not be normalised. Only rows compete; the M choices of the query give the symmetry. No N
    x N matrix is stored.

    With `presence`, the samples of modality m are those that have it and another one. Their keys are projections on the
    span of those of the others that they have, and only they compete. The mean is over modalities of the mean over
    their samples; modalities of fewer than two samples (one, with the positive in the denominator) are left out of it.
    What stands in the place of an embedding that is absent, or alone in its sample, is not used and gets a gradient of
    zero. With per-sample keys this costs what it does without; with pairwise keys all modalities are swept once for
    each set of samples that differs, up to M times the work. The values of `presence` are read back, which breaks the
    graph of `torch.compile`: `fullgraph=True` takes none.

    Parameters
    ----------
    embeddings : sequence of M tensors [N, d], tensor [M, N, d] or mapping to [N, d]
        float64, float32, bfloat16 or float16, any strides; M >= 2.
    temperature : float or 0-d Tensor
        :math:`\tau > 0`; a tensor may need a gradient, and is not read back: :math:`\tau \le 0` there gives NaN.
    ridge : float
        :math:`\lambda \ge 0`, see :func:`ridge_projection`.
    keys : {"per_sample", "pairwise"}
    positive_in_denominator : bool
        False in the paper: the loss is then unbounded below by zero and, with N - 1 negatives, ln(N - 1) minus the loss
        is its estimate of the mutual information.
    reduction : {"mean", "sum", "none"}
        "none" gives [M, N], with zeros where `presence` leaves a sample out; "sum" is the sum of that.
    presence : bool Tensor [N, M], optional
        True where sample n has modality m, in the order of `embeddings`; None where none is missing.
    backend : str, optional
        See :class:`mibfast.use_backend`.

    Returns
    -------
    Tensor
        In nats; float64 for float64 embeddings, else float32.

    Raises
    ------
    TypeError, ValueError
        For fewer than two modalities, unequal shapes, dtypes or devices, a number for the temperature that is not
        positive, a negative ridge, unknown keys, N = 1 with the positive left out, or a presence that is none or leaves
        no modality.

    Examples
    --------
    >>> import torch
    >>> from mibfast import functional as F
    >>> aligned = torch.eye(4)
    >>> F.one_vs_all_info_nce([aligned, aligned, aligned], temperature=1.0)
    tensor(0.0986)
    >>> presence = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 1], [1, 0, 0]]).bool()
    >>> F.one_vs_all_info_nce([aligned, aligned, aligned], temperature=1.0, presence=presence, reduction="none")
    tensor([[-0.3069, -0.3069, -0.3069,  0.0000],
            [-1.0000, -1.0000,  0.0000,  0.0000],
            [-1.0000,  0.0000, -1.0000,  0.0000]])
    """
    z, _ = _check.embeddings(_NAME, embeddings)
    temperature = _check.temperature(_NAME, temperature, z[0].device)
    ridge = _check.number(_NAME, "ridge", ridge, 0.0)
    _check.choice(_NAME, "keys", keys, _KEYS)
    _check.boolean(_NAME, "positive_in_denominator", positive_in_denominator)
    _check.reduction(_NAME, reduction)
    if presence is not None:
        settings = _Options(ridge, keys, positive_in_denominator)
        presence = _check.presence(_NAME, presence, z)
        return _of_those_present(z, presence, temperature, settings, reduction, backend)
    if not positive_in_denominator:
        _check.negatives(_NAME, z[0].shape[0])
    chosen = _backend.choose(_NAME, z[0].device, backend, _offers(z, keys))
    if chosen == "reference":
        scale = inverse_temperature(temperature)
        losses = torch.stack(
            [
                pairwise.info_nce(s * scale, positive_in_denominator=positive_in_denominator)
                for s in reference.scores(z, ridge, keys)
            ]
        )
        return reduced(losses, reduction)
    options = _Options(ridge, keys, positive_in_denominator)
    return _loss(chosen, (*z, temperature_tensor(temperature)), options, reduction)


def _offers(z: Sequence[Tensor], keys: str) -> dict[str, str | None]:
    if keys == "per_sample":
        return pairwise_offers(z[0], "M", len(z), LARGEST_M)
    return pairwise_offers(z[0], "M", len(z), LARGEST_K + 1)


def _of_those_present(
    z: Sequence[Tensor],
    presence: Tensor,
    temperature: float | Tensor,
    settings: _Options,
    reduction: str,
    backend: str | None,
) -> Tensor:
    """Each modality over the samples that have it and another, zeros in place of what they lack.

    A vector of zeros adds nothing to a span; since the ridge in effect is each embedding's own, it does not move the
    projections on the others either.
    """
    ridge, keys, positive_in_denominator = settings
    partnered = presence & (presence.sum(1, keepdim=True) > 1)
    z = [x.masked_fill(~has[:, None], 0.0) for x, has in zip(z, partnered.unbind(1), strict=True)]
    fewest = 1 if positive_in_denominator else 2
    samples = [has.nonzero().squeeze(1) for has in partnered.unbind(1)]
    taken = {m: rows for m, rows in enumerate(samples) if len(rows) >= fewest}
    expected = f"a modality with N >= {fewest} samples that have it and another one"
    _check.left_by_presence(_NAME, bool(taken), expected)
    if keys == "per_sample":
        z = [x.to(accumulation_dtype(x.dtype)) for x in z]
        projections = leave_one_out_projection(z, ridge, backend=backend)
        losses = {
            m: info_nce(
                unit(z[m].index_select(0, rows)),
                unit(projections[m].index_select(0, rows)),
                temperature,
                positive_in_denominator=positive_in_denominator,
                reduction=reduction,
                backend=backend,
            )
            for m, rows in taken.items()
        }
    else:
        losses = {}
        for m, rows in taken.items():
            if m in losses:
                continue
            whole = one_vs_all_info_nce(
                [x.index_select(0, rows) for x in z],
                temperature,
                ridge,
                keys=keys,
                positive_in_denominator=positive_in_denominator,
                reduction="none",
                backend=backend,
            )
            alike = [k for k, others in taken.items() if torch.equal(others, rows)]
            losses.update({k: reduced(whole[k], reduction) for k in alike})
    if reduction != "none":
        return reduced(torch.stack(list(losses.values())), reduction)
    nothing = next(iter(losses.values())).new_zeros(len(presence))
    return torch.stack(
        [nothing.index_copy(0, taken[m], losses[m]) if m in losses else nothing for m in range(len(samples))]
    )


class _Options(NamedTuple):
    ridge: float
    keys: str
    positive_in_denominator: bool


def _results(z: list[Tensor], temperature: Tensor, *_: Any) -> list[Tensor]:
    """Losses and log-sum-exps, [M, N] each."""
    shape = (len(z), z[0].shape[0])
    return [z[0].new_empty(shape, dtype=accumulation_dtype(z[0].dtype)), z[0].new_empty(shape, dtype=torch.float64)]


_loss = StreamedLoss(_NAME, "one_vs_all", "*embeddings temperature", _results, options=_Options, launcher="info_nce")
