"""Errors come early and say what came in."""

import inspect
import math
import os
import re
import subprocess
import sys
import threading
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

import mibfast
from mibfast import bottleneck, information, losses, nn, omib, train
from mibfast import functional as F
from mibfast.nn import fusion
from mibfast.train import comparison

A, B = torch.randn(6, 4), torch.randn(6, 4)
SQUARE = A @ A.mT
BOTH, NEVER = torch.ones(6, 2, dtype=torch.bool), torch.zeros(6, 2, dtype=torch.bool)
ONCE = torch.arange(6)[:, None].expand(6, 2) == 3

ERRORS = [
    (lambda: F.one_vs_all_info_nce([A]), ValueError, r"one_vs_all_info_nce: embeddings must hold at least 2 .* got 1"),
    (lambda: F.one_vs_all_info_nce(A), ValueError, r"must be \[M, N, d\], got a tensor of shape \[6, 4\]"),
    (lambda: F.one_vs_all_info_nce(3), TypeError, r"embeddings must be a sequence .* got int 3"),
    (lambda: F.one_vs_all_info_nce([A, [1.0]]), TypeError, r"embeddings\[1\] must be a tensor \[N, d\], got list"),
    (
        lambda: F.one_vs_all_info_nce([A, B[:5]]),
        ValueError,
        r"embeddings\[0\] and embeddings\[1\] .*\[6, 4\].*\[5, 4\]",
    ),
    (lambda: F.one_vs_all_info_nce({"image": A, "text": B[:, :3]}), ValueError, r"embeddings\['text'\] must have one"),
    (lambda: F.one_vs_all_info_nce([A.int(), B.int()]), TypeError, r"embeddings\[0\] must be float64.*torch.int32"),
    (lambda: F.one_vs_all_info_nce([A, B.double()]), TypeError, r"must have one dtype.*float32.*float64"),
    (lambda: F.one_vs_all_info_nce([A, B.to("meta")]), ValueError, r"must be on one device.*on cpu.*on meta"),
    (lambda: F.one_vs_all_info_nce([A[:1], B[:1]]), ValueError, r"one_vs_all_info_nce: .*N = 1 has no negatives"),
    (lambda: F.one_vs_all_info_nce([A, B], 0.0), ValueError, r"temperature must be positive and finite, got 0.0"),
    (lambda: F.one_vs_all_info_nce([A, B], -1), ValueError, r"temperature must be positive and finite, got -1"),
    (lambda: F.one_vs_all_info_nce([A, B], math.nan), ValueError, r"temperature must be positive and finite, got nan"),
    (lambda: F.one_vs_all_info_nce([A, B], True), TypeError, r"temperature must be a positive number .* got bool"),
    (lambda: F.one_vs_all_info_nce([A, B], "warm"), TypeError, r"temperature must be a positive number .* got str"),
    (lambda: F.one_vs_all_info_nce([A, B], torch.ones(2)), ValueError, r"0-d floating-point tensor, got .*\[2\]"),
    (
        lambda: F.one_vs_all_info_nce([A, B], torch.tensor(1.0, device="meta")),
        ValueError,
        r"temperature must be on cpu",
    ),
    (
        lambda: F.one_vs_all_info_nce([A, B], ridge=-1e-8),
        ValueError,
        r"ridge must be finite and at least 0, got -1e-08",
    ),
    (lambda: F.one_vs_all_info_nce([A, B], keys="both"), ValueError, r"keys must be one of 'per_sample', 'pairwise'"),
    (
        lambda: F.one_vs_all_info_nce([A, B], reduction="max"),
        ValueError,
        r"one of 'mean', 'sum', 'none', got str 'max'",
    ),
    (lambda: F.one_vs_all_info_nce([A, B], backend="gpu"), ValueError, r"unknown backend 'gpu'; .*'reference', 'cpu'"),
    (lambda: F.info_nce(A, B, backend=A), ValueError, r"unknown backend a tensor of shape \[6, 4\].*; expected one of"),
    (lambda: F.info_nce(A, B, backend=A.numpy()), ValueError, r"unknown backend ndarray array.*; expected one of"),
    (lambda: F.info_nce(A, [A]), TypeError, r"info_nce: key must be a tensor \[N', d\], got list \[tensor\(\[\["),
    (
        lambda: F.symile_info_nce([A, B], 1.0, negatives="shuffled", generator=3),
        TypeError,
        r"generator must be .* int 3",
    ),
    (lambda: F.one_vs_all_minimality([A.to_sparse(), B]), TypeError, r"must be a dense tensor"),
    (lambda: F.one_vs_all_minimality([A[:0], B[:0]]), ValueError, r"must not be empty, got a tensor of shape \[0, 4\]"),
    (lambda: F.info_nce(A, B[:5]), ValueError, r"info_nce: .*offset must be in \[0, N' - N\].*N = 6 rows and N' = 5"),
    (lambda: F.info_nce(A[:4], B, offset=3), ValueError, r"got offset 3, N = 4 rows and N' = 6 columns"),
    (lambda: F.info_nce(A[:4], B, offset=1.0), TypeError, r"offset must be an int, got float 1.0"),
    (
        lambda: F.info_nce(A[:1], B, symmetric=True, positive_in_denominator=False),
        ValueError,
        r"N = 1 has no negatives",
    ),
    (
        lambda: F.partial_lse(A, B, score="cosine"),
        ValueError,
        r"partial_lse: score must be one of 'inner_product', 'squared_distance', 'lorentz'",
    ),
    (lambda: F.partial_lse(A, B, offset=0.0), TypeError, r"partial_lse: offset must be an int or None, got float 0.0"),
    (lambda: F.partial_lse(A, B[:, :3]), ValueError, r"rows and columns must have one last dimension"),
    (lambda: F.critic_log_sum_exp(A[:4], B, offset=3), ValueError, r"got offset 3, N = 4 rows and N' = 6 columns"),
    (lambda: F.info_nce(A, B[:, :3]), ValueError, r"query and key must have one last dimension"),
    (lambda: F.info_nce(A[0], B), ValueError, r"query must be \[N, d\], got a tensor of shape \[4\]"),
    (lambda: F.info_nce(A[:1], B[:1], positive_in_denominator=False), ValueError, r"N = 1 has no negatives"),
    (
        lambda: F.info_nce(A, B, label_smoothing=0.1, positive_in_denominator=False),
        ValueError,
        r"label_smoothing = 0.1 needs positive_in_denominator=True",
    ),
    (lambda: F.info_nce(A, B, label_smoothing=1.5), ValueError, r"label_smoothing must be finite and in \[0, 1\]"),
    (lambda: F.gaussian_kl(A, B[:5]), ValueError, r"gaussian_kl: mean and logvar must have one shape"),
    (
        lambda: F.gaussian_kl(A, B, A),
        ValueError,
        r"prior_mean and prior_logvar go together.* and prior_logvar NoneType",
    ),
    (lambda: F.gaussian_kl(A, B, A[:5], B), ValueError, r"prior_mean must broadcast to the shape of mean"),
    (lambda: F.one_vs_all_minimality([A, B], reduction="max"), ValueError, r"reduction must be one of 'mean', 'sum'"),
    (lambda: F.gaussian_kl(A, B, reduction="avg"), ValueError, r"'none', 'batchmean', 'mean', 'sum', got str 'avg'"),
    (lambda: F.product_of_experts([A, B], [A, B, A]), ValueError, r"as many means as logvars, got 2 and 3"),
    (
        lambda: F.reparameterised_gaussian(A, B, A, logvar_bounds=(0.0, 10**49)),
        ValueError,
        r"logvar_bounds must be finite in float32",
    ),
    (
        lambda: F.reparameterised_gaussian(A, B, A, logvar_bounds=(Decimal(0), 1.0)),
        TypeError,
        r"logvar_bounds must be a number, got Decimal",
    ),
    (lambda: F.product_of_experts([], []), ValueError, r"embeddings must hold at least 1 modalities, got 0"),
    (lambda: F.top_k(A, B, 10**5000), ValueError, r"top_k: k must be below 2\^63, got of more digits"),
    (lambda: F.info_nce(A, B, offset=10**5000), ValueError, r"got offset of more digits than Python writes, N = 6"),
    (lambda: F.info_nce(A, B, reduction=torch.ones(2)), ValueError, r"'sum', 'none', got a tensor of shape \[2\]"),
    (lambda: F.info_nce(A, B, reduction=np.ones(2)), ValueError, r"'sum', 'none', got ndarray"),
    (lambda: F.mutual_information(SQUARE, "mine", buffer=torch.tensor(0)), ValueError, r"buffer must be a 0-d .*int64"),
    (lambda: F.product_of_experts([A, B], [A[:5], B[:5]]), ValueError, r"means and logvars must have one shape"),
    (lambda: F.ridge_projection(A, B), ValueError, r"basis must be \[\.\.\., K, d\] for a target \[\.\.\., d\]"),
    (lambda: F.ridge_projection(A, A[:, None], ridge="small"), TypeError, r"ridge must be a number, got str 'small'"),
    (lambda: F.projection_score(A, B), ValueError, r"context must be \[Q, K, d\], got a tensor of shape \[6, 4\]"),
    (lambda: F.leave_one_out_projection([A.bool(), B.bool()]), TypeError, r"must be float64, float32, bfloat16"),
    (
        lambda: F.symile_info_nce([A, B], 0.0),
        ValueError,
        r"symile_info_nce: scale must be positive and finite, got 0.0",
    ),
    (lambda: F.symile_info_nce([A, B], math.inf), ValueError, r"scale must be positive and finite, got inf"),
    (lambda: F.symile_info_nce([A, B], torch.ones(2)), ValueError, r"scale must be a positive number or a 0-d .*\[2\]"),
    (lambda: F.symile_info_nce([A, B], torch.tensor(1.0, device="meta")), ValueError, r"scale must be on cpu"),
    (lambda: F.symile_info_nce([A] * 5, 1.0), ValueError, r'at most 4 modalities, got 5; use negatives="shuffled"'),
    (lambda: F.symile_info_nce([A, B], 1.0, negatives="some"), ValueError, r"negatives must be one of 'all', 'shuff"),
    (
        lambda: F.symile_info_nce([A, B], 1.0, generator=torch.Generator()),
        ValueError,
        r'permutations and generator are for negatives="shuffled"',
    ),
    (
        lambda: F.symile_info_nce([A, B], 1.0, negatives="shuffled", permutations=torch.zeros(2, 6).long()),
        ValueError,
        r"each row of permutations must hold 0..N - 1 once, for N = 6",
    ),
    (
        lambda: F.symile_info_nce([A, B], 1.0, negatives="shuffled", permutations=torch.zeros(2, 5).long()),
        ValueError,
        r"permutations must be \[M, M - 1, N\], 2 permutations of N = 6, got a tensor of shape \[2, 5\]",
    ),
    (
        lambda: F.symile_info_nce([A, B, A], 1.0, negatives="shuffled", permutations=torch.zeros(2, 3, 6).long()),
        ValueError,
        r"permutations must be \[M, M - 1, N\], 6 permutations of N = 6, got a tensor of shape \[2, 3, 6\]",
    ),
    (
        lambda: F.symile_info_nce([A, B], 1.0, negatives="shuffled", permutations=torch.zeros(2, 6)),
        TypeError,
        r"permutations must be integers",
    ),
    (
        lambda: F.symile_info_nce([A, B], 1.0, negatives="shuffled", permutations=[[0, 1]]),
        TypeError,
        r"permutations must be a tensor of integers, got list",
    ),
    (
        lambda: F.symile_info_nce(
            [A, B],
            1.0,
            negatives="shuffled",
            generator=torch.Generator(),
            permutations=torch.stack([torch.arange(6)] * 2),
        ),
        ValueError,
        r"permutations and generator exclude each other",
    ),
    (lambda: F.barlow_twins(A, B[:5]), ValueError, r"barlow_twins: a and b must have one shape"),
    (lambda: F.barlow_twins(A, B, -1), ValueError, r"off_diagonal_weight must be finite and at least 0, got -1"),
    (lambda: F.barlow_twins(A[:1], B[:1]), ValueError, r"barlow_twins: features are standardised .* N = 1 .* N >= 2"),
    (lambda: losses.BarlowTwinsLoss()([A[:1], B[:1]]), ValueError, r"batch of N = 1 .*expected N >= 2"),
    (lambda: F.barlow_twins(A, B.double()), TypeError, r"barlow_twins: a and b must have one dtype"),
    (
        lambda: F.barlow_twins(A, B, group="world"),
        TypeError,
        r"group must be a torch.distributed.ProcessGroup, got str",
    ),
    (
        lambda: losses.BarlowTwinsLoss()([A] * 3),
        ValueError,
        r"BarlowTwinsLoss: embeddings must hold exactly 2 .* got 3",
    ),
    (lambda: losses.SymileLoss(0), ValueError, r"SymileLoss: scale must be positive and finite, got 0"),
    (lambda: losses.SymileLoss(torch.tensor(1.0)), TypeError, r"SymileLoss: .* learnable_scale=True makes it a param"),
    (lambda: F.gram_volume(A, B), TypeError, r"gram_volume: others must be a sequence of tensors .* got a tensor"),
    (lambda: F.gram_volume(A, []), ValueError, r"gram_volume: others must hold at least 1 tensor, got none"),
    (lambda: F.gram_volume(A, [B, B[:5]]), ValueError, r"others\[0\] and others\[1\] must have one shape"),
    (lambda: F.gram_volume(A, [B[:, :3]]), ValueError, r"anchor and others\[0\] must have one last dimension"),
    (lambda: F.gram_volume(A, [B.double()]), TypeError, r"anchor and others\[0\] must have one dtype"),
    (
        lambda: F.gram_volume(A[0], [B]),
        ValueError,
        r"gram_volume: anchor must be \[N, d\], got a tensor of shape \[4\]",
    ),
    (lambda: F.gram_info_nce(A, [B[:5]]), ValueError, r"gram_info_nce: anchor and others\[0\] must have one shape"),
    (lambda: F.gram_info_nce(A, [B, 3]), TypeError, r"others\[1\] must be a tensor \[N', d\], got int 3"),
    (lambda: F.gram_info_nce(A, [B], 0.0), ValueError, r"gram_info_nce: temperature must be positive and finite"),
    (lambda: F.gram_info_nce(A, [B], label_smoothing=2), ValueError, r"label_smoothing must be finite and in \[0, 1\]"),
    (lambda: F.triangle_area(A, B, B[:5]), ValueError, r"triangle_area: b and c must have one shape"),
    (lambda: F.triangle_area(A, B, B[:, :3]), ValueError, r"triangle_area: a and c must have one last dimension"),
    (lambda: F.triangle_info_nce(A, B, B[:5]), ValueError, r"triangle_info_nce: a and c must have one shape"),
    (lambda: F.triangle_info_nce(A, B, None), TypeError, r"c must be a tensor \[N, d\], got NoneType None"),
    (lambda: F.triangle_info_nce(A, B, A, -1.0), ValueError, r"temperature must be positive and finite, got -1.0"),
    (
        lambda: losses.GRAMLoss(anchor=1.5),
        TypeError,
        r"GRAMLoss: anchor must be the index or the name .* got float 1.5",
    ),
    (lambda: losses.GRAMLoss(anchor=2)([A, B]), ValueError, r"GRAMLoss: anchor must be in \[0, 1\], got 2"),
    (lambda: losses.GRAMLoss(anchor="text")([A, B]), ValueError, r"anchor must be one of '0', '1', got str 'text'"),
    (lambda: losses.TRIANGLELoss()([A, B]), ValueError, r"TRIANGLELoss: embeddings must hold exactly 3 .* got 2"),
    (lambda: losses.TRIANGLELoss(label_smoothing=-1), ValueError, r"TRIANGLELoss: label_smoothing must be finite"),
    (lambda: F.siglip(A, B[:5]), ValueError, r"siglip: .*offset must be in \[0, N' - N\].*N = 6 rows and N' = 5"),
    (lambda: F.siglip(A, B[:, :3]), ValueError, r"siglip: query and key must have one last dimension"),
    (lambda: F.siglip(A, B.double()), TypeError, r"siglip: query and key must have one dtype"),
    (lambda: F.siglip(A, B, math.inf), ValueError, r"siglip: scale must be finite, got inf"),
    (lambda: F.siglip(A, B, "10"), TypeError, r"siglip: scale must be a number, got str '10'"),
    (lambda: F.siglip(A, B, bias=torch.ones(2)), ValueError, r"siglip: bias must be a number or a 0-d .*\[2\]"),
    (lambda: F.siglip(A, B, bias=torch.tensor(1, device="cpu")), ValueError, r"siglip: bias .* 0-d floating-point"),
    (lambda: F.siglip(A, B, torch.tensor(1.0, device="meta")), ValueError, r"siglip: scale must be on cpu"),
    (lambda: F.siglip(A, B, reduction="max"), ValueError, r"reduction must be one of 'mean', 'sum', 'none'"),
    (lambda: F.top_k(A, B, 7), ValueError, r"top_k: k must be at most the number of candidates, got k = 7 and C = 6"),
    (lambda: F.top_k(A, B, 0), ValueError, r"top_k: k must be at least 1, got 0"),
    (lambda: F.top_k(A, B, 2.0), TypeError, r"top_k: k must be an int, got float 2.0"),
    (lambda: F.top_k(A, B[:, :3], 2), ValueError, r"top_k: query and key must have one last dimension"),
    (lambda: F.top_k(A, B, 2, score="distance"), ValueError, r"top_k: score must be one of 'inner_product', 'squared"),
    (lambda: F.top_k(A, B, 2, score="ridge_projection"), ValueError, r"top_k: query must be \[Q, K, d\], got"),
    (lambda: F.top_k(A[:, None], B, 2), ValueError, r"top_k: query must be \[Q, d\], got"),
    (lambda: F.top_k(A, B, 2, score="gram_volume"), ValueError, r"top_k: query must be \[Q, K, d\], got"),
    (lambda: F.top_k(A, B, 2, score="symile"), ValueError, r"top_k: query must be \[Q, K, d\], got"),
    (lambda: F.top_k(A, B, 2, score="triangle_area"), ValueError, r"top_k: query must be \[Q, 2, d\], got"),
    (
        lambda: F.top_k(A[:, None].expand(6, 3, 4), B, 2, score="triangle_area"),
        ValueError,
        r"top_k: query must have the size 2 in dimension 1, got a tensor of shape \[6, 3, 4\]",
    ),
    (lambda: F.top_k(A[:, None][:, :0], B, 2, score="gram_volume"), ValueError, r"top_k: query must not be empty"),
    (
        lambda: F.top_k(A[:, None], B, 7, score="gram_volume"),
        ValueError,
        r"top_k: k must be at most .* k = 7 and C = 6",
    ),
    (lambda: F.top_k(A[:, None], B[:, :3], 2, score="symile"), ValueError, r"top_k: query and key must have one last"),
    (lambda: F.top_k(A, B[:0], 1), ValueError, r"top_k: key must not be empty"),
    (lambda: F.top_k(A, B, 1, ridge=-1.0), ValueError, r"top_k: ridge must be finite and at least 0"),
    (lambda: losses.SigLIPLoss(scale=0), ValueError, r"SigLIPLoss: scale must be positive and finite, got 0"),
    (lambda: losses.SigLIPLoss(bias=math.nan), ValueError, r"SigLIPLoss: bias must be finite, got nan"),
    (lambda: losses.SigLIPLoss()([A]), ValueError, r"SigLIPLoss: embeddings must hold at least 2"),
    (lambda: losses.OVAIBLoss(temperature=0), ValueError, r"OVAIBLoss: temperature must be positive and finite, got 0"),
    (lambda: losses.OVAIBLoss(beta=-1), ValueError, r"OVAIBLoss: beta must be finite and at least 0, got -1"),
    (lambda: losses.OVAIBLoss(keys="all"), ValueError, r"OVAIBLoss: keys must be one of"),
    (lambda: losses.OVAIBLoss()([A, B[:5]]), ValueError, r"OVAIBLoss: embeddings\[0\] and embeddings\[1\] must have"),
    (lambda: losses.LearnedProjectorOVAIBLoss(1, 4), ValueError, r"OVAIBLoss: modalities must be at least 2, got 1"),
    (lambda: losses.LearnedProjectorOVAIBLoss(3, 4.0), TypeError, r"OVAIBLoss: features must be an int, got float 4.0"),
    (lambda: losses.LearnedProjectorOVAIBLoss(3, 4, 0), ValueError, r"hidden_features must be at least 1, got 0"),
    (lambda: losses.LearnedProjectorOVAIBLoss(3, 4, depth=0), ValueError, r"depth must be at least 1, got 0"),
    (
        lambda: losses.LearnedProjectorOVAIBLoss(3, 4, temperature=0),
        ValueError,
        r"LearnedProjectorOVAIBLoss: temperature must be positive and finite, got 0",
    ),
    (
        lambda: losses.LearnedProjectorOVAIBLoss(3, 4, beta=-1),
        ValueError,
        r"beta must be finite and at least 0, got -1",
    ),
    (
        lambda: losses.LearnedProjectorOVAIBLoss(3, 4)([A, B]),
        ValueError,
        r"LearnedProjectorOVAIBLoss: embeddings must be 3 modalities of 4 features, got 2 of 4",
    ),
    (lambda: losses.LearnedProjectorOVAIBLoss(2, 5)([A, B]), ValueError, r"2 modalities of 5 features, got 2 of 4"),
    (lambda: losses.LearnedProjectorOVAIBLoss(2, 4)([A[:1], B[:1]]), ValueError, r"N = 1 has no negatives"),
    (lambda: losses.LearnedProjectorOVAIBLoss(2, 4, backend="gpu")([A, B]), ValueError, r"unknown backend 'gpu'"),
    (lambda: losses.PairwiseCLIPLoss(torch.tensor(0.1)), TypeError, r"learnable_temperature=True makes it a parameter"),
    (lambda: losses.PairwiseCLIPIBLoss(beta=math.inf), ValueError, r"PairwiseCLIPIBLoss: beta must be finite"),
    (
        lambda: losses.InfoNCELoss()(A, None),
        TypeError,
        r"InfoNCELoss: key must be a tensor \[N', d\], got NoneType None",
    ),
    (
        lambda: losses.OVAIBLoss()([A, B], 1),
        TypeError,
        r"OVAIBLoss: presence must be a tensor of bool \[N, M\], got int 1",
    ),
    (
        lambda: losses.SigLIPLoss()([A, B], BOTH.float()),
        TypeError,
        r"SigLIPLoss: presence must .* bool .*torch.float32",
    ),
    (
        lambda: losses.GRAMLoss()([A, B], BOTH.T),
        ValueError,
        r"GRAMLoss: presence must be \[N, M\], here \[6, 2\]: .* got a tensor of shape \[2, 6\]",
    ),
    (
        lambda: losses.SymileLoss()([A, B], BOTH.to("meta")),
        ValueError,
        r"SymileLoss: presence must be on cpu .*on meta",
    ),
    (lambda: F.one_vs_all_info_nce([A, B], presence=BOTH[0]), ValueError, r"one_vs_all_info_nce: presence must be \[N"),
    (
        lambda: F.one_vs_all_minimality([A, B], presence=BOTH.int()),
        TypeError,
        r"one_vs_all_minimality: presence must be",
    ),
    (
        lambda: losses.OVAIBLoss()([A, B], ONCE),
        ValueError,
        r"presence leaves nothing to take the loss of; expected a modality with N >= 2 samples that have it and an",
    ),
    (
        lambda: F.one_vs_all_minimality([A, B], presence=NEVER),
        ValueError,
        r"one_vs_all_minimality: presence leaves nothing .* expected a sample that has at least 2 modalities",
    ),
    (
        lambda: losses.PairwiseCLIPIBLoss(positive_in_denominator=False)([A, B], ONCE),
        ValueError,
        r"PairwiseCLIPIBLoss: presence leaves nothing .* a pair of modalities with N >= 2 samples that have both",
    ),
    (
        lambda: losses.SymileLoss()([A, B], NEVER),
        ValueError,
        r"SymileLoss: presence leaves nothing .* expected N >= 1 samples with all modalities, got N = 0",
    ),
    (lambda: losses.BarlowTwinsLoss()([A, B], ONCE), ValueError, r"BarlowTwinsLoss: .* expected N >= 2 .* got N = 1"),
    (
        lambda: losses.BarlowTwinsLoss(group="world")([A, B], BOTH),
        ValueError,
        r"BarlowTwinsLoss: presence must be None with a group, .* got a tensor of shape \[6, 2\], torch.bool",
    ),
    (lambda: losses.InfoNCELoss()(A[:5], B, BOTH), ValueError, r"InfoNCELoss: query and key must have one shape"),
    (lambda: F.critic_log_sum_exp(A, B[:5]), ValueError, r"critic_log_sum_exp: .*y must have as many rows .*\[5, 4\]"),
    (lambda: F.critic_log_sum_exp(A, B, clip=0.0), ValueError, r"clip must be positive, got 0.0"),
    (lambda: F.critic_log_sum_exp(A, B, clip=-1.0), ValueError, r"clip must be finite and at least 0, got -1.0"),
    (lambda: F.critic_log_sum_exp(A, B, A[0]), ValueError, r"weight must be None for score='inner_product', got a ten"),
    (
        lambda: F.critic_log_sum_exp(A, B, score="bilinear"),
        ValueError,
        r"score must be one of .*'lorentz', 'addit",
    ),
    (
        lambda: F.critic_softplus(A, B, score="additive"),
        ValueError,
        r"score='additive' needs a weight",
    ),
    (lambda: F.critic_log_mean_exp(A[:1], B[:1]), ValueError, r"critic_log_mean_exp: a batch of N = 1 has no pairs"),
    (lambda: F.critic_log_mean_exp(A, B, clip=0.0), ValueError, r"critic_log_mean_exp: clip must be positive, got 0.0"),
    (lambda: F.critic_mean_softplus(A, B, clip=1.0), ValueError, r"clip is for log_mean_exp=True, got clip = 1.0"),
    (lambda: F.critic_mean_softplus(A, B, A[0]), ValueError, r"critic_mean_softplus: weight must be None for score"),
    (lambda: F.critic_softplus(A, B, A[0, :3], score="additive"), ValueError, r"weight must have the size 4 .*\[3\]"),
    (lambda: F.critic_softplus(A, B, A[0], 1.0, score="additive"), ValueError, r"bias must be a 0-d .* got float 1.0"),
    (lambda: F.critic_softplus(A, B, A[0].double(), score="additive"), TypeError, r"x and weight must have one dtype"),
    (lambda: F.critic_softplus(A, B, A[0], hidden=A, score="additive"), TypeError, r"hidden must be a pair .*\[6, 4\]"),
    (
        lambda: F.critic_softplus(A, B, A[0], hidden=(A, A[0]), score="additive"),
        ValueError,
        r"hidden\[1\] must have the size 6 in dimension 0, got a tensor of shape \[4\]",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS, ids=range(len(ERRORS)))
def test_errors(call, kind, message) -> None:
    with pytest.raises(kind, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# Functions by a number that float32 holds with its inverse, and by any other, each argument of each operation.
POSITIVES = {
    "info_nce: temperature": lambda x: F.info_nce(A, B, x),
    "one_vs_all_info_nce: temperature": lambda x: F.one_vs_all_info_nce([A, B], x),
    "gram_info_nce: temperature": lambda x: F.gram_info_nce(A, [B], x),
    "triangle_info_nce: temperature": lambda x: F.triangle_info_nce(A, B, A.flip(0), x),
    "symile_info_nce: scale": lambda x: F.symile_info_nce([A, B], x),
    "InfoNCELoss: temperature": lambda x: losses.InfoNCELoss(x)(A, B),
    "PairwiseCLIPLoss: temperature": lambda x: losses.PairwiseCLIPLoss(x)([A, B]),
    "PairwiseCLIPIBLoss: temperature": lambda x: losses.PairwiseCLIPIBLoss(x)([A, B]),
    "GRAMLoss: temperature": lambda x: losses.GRAMLoss(x)([A, B]),
    "TRIANGLELoss: temperature": lambda x: losses.TRIANGLELoss(x)([A, B, A.flip(0)]),
    "OVAIBLoss: temperature": lambda x: losses.OVAIBLoss(x)([A, B]),
    "LearnedProjectorOVAIBLoss: temperature": lambda x: losses.LearnedProjectorOVAIBLoss(2, 4, temperature=x)([A, B]),
    "SymileLoss: scale": lambda x: losses.SymileLoss(x)([A, B]),
    "SigLIPLoss: scale": lambda x: losses.SigLIPLoss(x)([A, B]),
    "CosineCritic: temperature": lambda x: information.CosineCritic(x)(A, B),
}
NUMBERS = {
    "siglip: scale": lambda x: F.siglip(A, B, x),
    "siglip: bias": lambda x: F.siglip(A, B, bias=x),
    "one_vs_all_info_nce: ridge": lambda x: F.one_vs_all_info_nce([A, B], ridge=x),
    "projection_score: ridge": lambda x: F.projection_score(A, A[:, None], x),
    "ridge_projection: ridge": lambda x: F.ridge_projection(A, A[:, None], x),
    "leave_one_out_projection: ridge": lambda x: F.leave_one_out_projection([A, B], x),
    "top_k: ridge": lambda x: F.top_k(A[:, None], B, 2, score="ridge_projection", ridge=x)[0],
    "barlow_twins: off_diagonal_weight": lambda x: F.barlow_twins(A, B, x),
    "info_nce: label_smoothing": lambda x: F.info_nce(A, B, label_smoothing=x),
    "gram_info_nce: label_smoothing": lambda x: F.gram_info_nce(A, [B], label_smoothing=x),
    "triangle_info_nce: label_smoothing": lambda x: F.triangle_info_nce(A, B, A, label_smoothing=x),
    "critic_log_sum_exp: clip": lambda x: F.critic_log_sum_exp(A, B, clip=x)[1],
    "critic_log_mean_exp: clip": lambda x: F.critic_log_mean_exp(A, B, clip=x),
    "critic_mean_softplus: clip": lambda x: F.critic_mean_softplus(A, B, log_mean_exp=True, clip=x)[1],
    "mutual_information: clip": lambda x: F.mutual_information(SQUARE, "smile", clip=x),
    "mutual_information: momentum": lambda x: F.mutual_information(SQUARE, "mine", momentum=x),
    "OVAIBLoss: ridge": lambda x: losses.OVAIBLoss(ridge=x)([A, B]),
    "OVAIBLoss: beta": lambda x: losses.OVAIBLoss(beta=x)([A, B]),
    "LearnedProjectorOVAIBLoss: beta": lambda x: losses.LearnedProjectorOVAIBLoss(2, 4, beta=x)([A, B]),
    "PairwiseCLIPIBLoss: beta": lambda x: losses.PairwiseCLIPIBLoss(beta=x)([A, B]),
    "BarlowTwinsLoss: off_diagonal_weight": lambda x: losses.BarlowTwinsLoss(x)([A, B]),
    "InfoNCELoss: label_smoothing": lambda x: losses.InfoNCELoss(label_smoothing=x)(A, B),
    "GRAMLoss: label_smoothing": lambda x: losses.GRAMLoss(label_smoothing=x)([A, B]),
    "SigLIPLoss: bias": lambda x: losses.SigLIPLoss(bias=x)([A, B]),
    "MutualInformation: clip": lambda x: information.MutualInformation(information.CosineCritic(), clip=x)(A, B),
    "MutualInformation: momentum": lambda x: information.MutualInformation(
        information.CosineCritic(), "mine", momentum=x
    )(A, B),
    "omf_loss: beta": lambda x: omib.omf_loss(A[0, 0], [A[0, 1], A[0, 2]], None, x),
    "anomaly_threshold: quantile": lambda x: omib.anomaly_threshold([1.0, 2.0, 4.0], x),
    "beta_bounds: entropies[0]": lambda x: omib.beta_bounds([x, x], {(0, 1): 0.0})[0],
    "MLPEncoder: dropout": lambda x: nn.MLPEncoder(3, dropout=x).layers[2].p,
}
TOO_LARGE = [10**49, 10**400, 10**5000, 1e49, math.inf, Fraction(10**5000, 3)]
NO_NUMBERS = [True, np.True_, "0.1", Decimal("0.1"), 0.1j, [0.1], np.array(0.1), b"1"]


def _refused(call, name, given) -> None:
    """An error of one line that names the operation and the argument."""
    with pytest.raises((TypeError, ValueError)) as caught:
        call(given)
    text = str(caught.value)
    assert text.startswith(f"{name} must be "), text
    assert "\n" not in text
    assert len(text) < 250


@pytest.mark.parametrize("name", [*POSITIVES, *NUMBERS])
def test_what_is_no_number_or_none_that_float32_holds_is_refused(name) -> None:
    call = (POSITIVES | NUMBERS)[name]
    for given in (*TOO_LARGE, *NO_NUMBERS, math.nan, -math.inf, -(10**400)):
        _refused(call, name, given)


@pytest.mark.parametrize("name", POSITIVES)
def test_what_float32_does_not_hold_the_inverse_of_is_refused(name) -> None:
    for given in (0, -1, 1e-300, 1e-40, 1e38, Fraction(1, 10**400)):
        _refused(POSITIVES[name], name, given)


@pytest.mark.parametrize("name", [*POSITIVES, *NUMBERS])
def test_any_real_number_is_a_number(name) -> None:
    call = (POSITIVES | NUMBERS)[name]
    torch.manual_seed(0)
    expected = torch.as_tensor(call(0.5))
    for given in (Fraction(1, 2), np.float32(0.5), np.float64(0.5), np.float16(0.5)):
        torch.manual_seed(0)
        torch.testing.assert_close(torch.as_tensor(call(given)), expected, rtol=0, atol=0)


# Arguments that are 0-d tensors.
SCALARS = {
    "info_nce: temperature": lambda x, **options: F.info_nce(A, B, x, **options),
    "one_vs_all_info_nce: temperature": lambda x, **options: F.one_vs_all_info_nce([A, B], x, **options),
    "gram_info_nce: temperature": lambda x, **options: F.gram_info_nce(A, [B], x, **options),
    "triangle_info_nce: temperature": lambda x, **options: F.triangle_info_nce(A, B, A.flip(0), x, **options),
    "symile_info_nce: scale": lambda x, **options: F.symile_info_nce([A, B, A.flip(0)], x, **options),
    "symile_info_nce, two: scale": lambda x, **options: F.symile_info_nce([A, B], x, **options),
    "siglip: scale": lambda x, **options: F.siglip(A, B, x, **options),
    "siglip: bias": lambda x, **options: F.siglip(A, B, bias=x, **options),
    "critic_softplus: bias": lambda x, **options: F.critic_softplus(A, B, A[0], x, score="additive", **options)[
        0
    ].sum(),
    "critic_log_mean_exp: bias": lambda x, **options: F.critic_log_mean_exp(A, B, A[0], x, score="additive", **options),
    "omf_loss: task_loss": lambda x, backend: omib.omf_loss(x, [A[0, 0]], None, 0.5),
    "omf_loss: divergences": lambda x, backend: omib.omf_loss(A[0, 0], [x, A[0, :1]], A[0, :1].abs(), 0.5),
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", SCALARS)
def test_a_tensor_of_one_number_is_a_scalar_and_gets_its_gradient_in_its_shape(name, backend) -> None:
    scalar, vector = (torch.full(shape, 0.7, requires_grad=True) for shape in ((), (1,)))
    expected, found = (SCALARS[name](x, backend=backend) for x in (scalar, vector))
    assert found.shape == ()
    assert torch.equal(found, expected)
    expected.backward()
    found.backward()
    assert vector.grad.shape == (1,)
    assert torch.equal(vector.grad[0], scalar.grad)


def test_a_moving_average_of_shape_1_moves() -> None:
    averages = [torch.zeros(()), torch.zeros(1)]
    values = [F.mutual_information(SQUARE, "mine", buffer=average) for average in averages]
    assert values[1].shape == ()
    assert torch.equal(*values)
    assert averages[1].shape == (1,)
    assert averages[1] == averages[0] != 0


# Every argument that is True or False, of functions; those of modules are found by their constructors.
FLAGS = {
    "info_nce: symmetric": lambda x: F.info_nce(A, B, symmetric=x),
    "info_nce: positive_in_denominator": lambda x: F.info_nce(A, B, positive_in_denominator=x),
    "info_nce: normalize": lambda x: F.info_nce(A, B, normalize=x),
    "siglip: normalize": lambda x: F.siglip(A, B, normalize=x),
    "partial_lse: positive_in_denominator": lambda x: F.partial_lse(A, B, positive_in_denominator=x),
    "one_vs_all_info_nce: positive_in_denominator": lambda x: F.one_vs_all_info_nce([A, B], positive_in_denominator=x),
    "triangle_area: squared": lambda x: F.triangle_area(A, B, A, squared=x),
    "triangle_info_nce: squared": lambda x: F.triangle_info_nce(A, B, A, squared=x),
    "critic_log_sum_exp: positive": lambda x: F.critic_log_sum_exp(A, B, positive=x),
    "critic_log_sum_exp: columns": lambda x: F.critic_log_sum_exp(A, B, columns=x),
    "critic_softplus: positive": lambda x: F.critic_softplus(A, B, positive=x),
    "critic_mean_softplus: positives": lambda x: F.critic_mean_softplus(A, B, positives=x),
    "critic_mean_softplus: log_mean_exp": lambda x: F.critic_mean_softplus(A, B, log_mean_exp=x),
    "mutual_information: clip_joint": lambda x: F.mutual_information(SQUARE, "smile", clip_joint=x),
    "reconstruction: scale_invariant": lambda x: fusion.losses.reconstruction(A, B, scale_invariant=x),
    "self_distillation: released": lambda x: fusion.losses.self_distillation(A, B, released=x),
    "fit: resume": lambda x: train.fit("ova-ib", "digits", resume=x),
    "fit: pictures": lambda x: train.fit("ova-ib", "digits", pictures=x),
    "fit: progress": lambda x: train.fit("ova-ib", "digits", progress=x),
    "compare: tune": lambda x: comparison.compare(["ova-ib"], "digits", "nowhere", tune=x),
    "compare: progress": lambda x: comparison.compare(["ova-ib"], "digits", "nowhere", progress=x),
    "evaluate: retrieval": lambda x: train.evaluate([], retrieval=x),
    "evaluate: progress": lambda x: train.evaluate([], progress=x),
    "open_run: whole": lambda x: train.open_run("nowhere", whole=x),
}
ENCODERS = {"a": torch.nn.Linear(4, 4), "b": torch.nn.Linear(4, 4)}
FLAGGED_MODULES = {
    "CosineCritic": information.CosineCritic,
    "MLPEncoder": lambda **flag: nn.MLPEncoder(3, **flag),
    "CrossAttention": lambda **flag: omib.CrossAttention(2, 4, **flag),
    "DMIB": lambda **flag: fusion.DMIB(ENCODERS, 4, fusion.Classification(2), **flag),
    "OMIB": lambda **flag: omib.OMIB(ENCODERS, 4, fusion.Classification(2), **flag),
    **{name: getattr(losses, name) for name in losses.__all__ if name.endswith("Loss") and "Projector" not in name},
    "LearnedProjectorOVAIBLoss": lambda **flag: losses.LearnedProjectorOVAIBLoss(2, 4, **flag),
}


def _flags(name) -> list[str]:
    kind = next(getattr(place, name) for place in (losses, information, nn, fusion, omib) if hasattr(place, name))
    return [each.name for each in inspect.signature(kind).parameters.values() if isinstance(each.default, bool)]


FLAGS |= {
    f"{name}: {flag}": lambda x, make=make, flag=flag: make(**{flag: x})
    for name, make in FLAGGED_MODULES.items()
    for flag in _flags(name)
}


@pytest.mark.parametrize("name", FLAGS)
def test_what_is_true_or_false_is_nothing_else(name) -> None:
    for given in ("False", "", 0, 1, None, np.True_, torch.tensor(True), torch.tensor([True, False]), [True]):
        _refused(FLAGS[name], name, given)


def test_every_flag_of_a_function_is_tested() -> None:
    named = set(FLAGS)
    for function in (
        *(getattr(F, name) for name in F.__all__),
        *(getattr(fusion.losses, n) for n in fusion.losses.__all__),
    ):
        for each in inspect.signature(function).parameters.values():
            assert not isinstance(each.default, bool) or f"{function.__name__}: {each.name}" in named


@pytest.mark.parametrize("name", [name for name in losses.__all__ if name.endswith("Loss") and name != "InfoNCELoss"])
def test_who_gives_two_tensors_is_told_to_give_a_list(name) -> None:
    kind = getattr(losses, name)
    loss = kind(2, 4) if "Projector" in name else kind()
    with pytest.raises(TypeError, match=rf"{name}: embeddings are one argument, as in loss\(\[a, b\]\); got two"):
        loss(A, B)


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_a_backend_asked_for_by_name_never_falls_back(name, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError, match=f"info_nce: backend '{name}' cannot be used: "):
        F.info_nce(A, B, backend=name)
    with mibfast.use_backend(name):  # noqa: SIM117
        with pytest.raises(RuntimeError, match=f"'{name}' cannot be used"):
            F.info_nce(A, B)


def test_use_backend_is_undone_and_belongs_to_a_thread() -> None:
    def default() -> str:
        return mibfast.info()["default_backend"]

    seen = []
    with mibfast.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(default()))
        thread.start()
        thread.join()
        with mibfast.use_backend("cpu"):
            seen.append(default())
        seen.append(default())
    with pytest.raises(ZeroDivisionError), mibfast.use_backend("reference"):
        _ = 1 / 0
    seen.append(default())
    assert seen == ["auto", "cpu", "reference", "auto"]
    with pytest.raises(ValueError, match="unknown backend 'gpu'"):
        mibfast.use_backend("gpu")


@pytest.mark.parametrize(("variable", "value"), [("MIBFAST_BACKEND", "gpu"), ("MIBFAST_BUFFER_CACHE", "much")])
def test_environment_variables_are_checked(variable, value) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import mibfast.kernels.row_addresses"],
        env={**os.environ, variable: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert value in done.stderr.strip().splitlines()[-1]


def _estimate(**options):
    return information.estimate(torch.randn(40, 2), torch.randn(40, 2), epochs=1, **options)


def _model(**options):
    encoders = {"a": torch.nn.Linear(4, 3), "b": torch.nn.Linear(4, 3)}
    return omib.OMIB(options.pop("encoders", encoders), 3, fusion.Classification(2), beta=0.1, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: _estimate(device=torch.zeros(3, 0)), TypeError, "estimate: device must be a torch.device, its name"),
        (lambda: _estimate(device="gpu"), ValueError, "estimate: device 'gpu' cannot be used: "),
        (lambda: _estimate(device="meta"), ValueError, "estimate: device must hold numbers, got 'meta'"),
        (lambda: _estimate(seeds="12"), TypeError, "estimate: seeds must be a sequence of ints, got str '12'"),
        (lambda: _estimate(seeds=1.5), TypeError, "estimate: seeds must be a sequence of ints, got float 1.5"),
        (lambda: _estimate(seeds=[True]), TypeError, "estimate: seeds must hold ints, got bool True"),
        (
            lambda: _estimate(seeds=[2**63]),
            ValueError,
            r"estimate: seeds must be in \[0, 2\^63\), got 9223372036854775808",
        ),
        (lambda: _estimate(seeds=[]), ValueError, "estimate: seeds must hold at least one, got none"),
        (lambda: _estimate(progress="yes"), TypeError, "estimate: progress must be a callable or None, got str 'yes'"),
        (
            lambda: bottleneck.Bottleneck(encoder="X -> Z", decoder="Z -> X", beta=1.0, likelihoods=["X"]),
            TypeError,
            r"Bottleneck: likelihoods must be a mapping or None, got list \['X'\]",
        ),
        (
            lambda: bottleneck.GaussianEncoder(4, 2)(torch.zeros(5, 3)),
            ValueError,
            r"GaussianEncoder: parents must have N samples of 4 features together, got a tensor of shape \[5, 3\]",
        ),
        (
            lambda: bottleneck.GaussianEncoder(4, 2)(torch.zeros(5, 4, dtype=torch.int64)),
            TypeError,
            r"GaussianEncoder: parents\[0\] must be floating-point \[N, ...\], got a tensor of shape \[5, 4\]",
        ),
        (lambda: _model(encoders={"a": len, "b": len}), TypeError, r"OMIB: encoders\['a'\] must be an nn.Module, got "),
        (
            lambda: _model(head_features=3),
            TypeError,
            "OMIB: head_features must be a sequence of ints or None, got int 3",
        ),
        (
            lambda: omib.f1_at_true_count([[0.1], [0.2, 0.3]], [0, 1]),
            TypeError,
            r"f1_at_true_count: scores must be an array of numbers, got list",
        ),
        (
            lambda: omib.f1_at_true_count([0.1, 0.2], [[0], [1, 1]]),
            TypeError,
            r"f1_at_true_count: labels must be an array of numbers, got list",
        ),
    ],
)
def test_arguments_of_estimates_and_models(call, error, message) -> None:
    with pytest.raises(error, match=f"^{message}"):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: losses.GRAMLoss()({0: x, "0": x}), "GRAMLoss: embeddings must have names that differ, got 0, 0"),
        (
            lambda x: losses.PairwiseCLIPLoss()({"a-b": x, "c": x, "a": x, "b-c": x}),
            "PairwiseCLIPLoss: two pairs of modalities would be called a-b-c; rename one of a-b, c, a, b-c",
        ),
    ],
)
def test_names_that_would_hide_a_term(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.randn(5, 4))


def test_a_query_and_a_key_of_unequal_dtypes() -> None:
    with pytest.raises(TypeError, match="InfoNCELoss: query and key must have one dtype"):
        losses.InfoNCELoss()(torch.randn(5, 4).half(), torch.randn(5, 4).bfloat16())


ENCODERS = {name: torch.nn.Linear(4, 4) for name in ("a", "b")}
NESTED = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)])
# Values that Python cannot compare, iterate over or write in a line.
ODD_VALUES = {
    "an array as a score": lambda: F.critic_log_sum_exp(A, B, score=np.ones((2, 2))),
    "a tensor as a choice": lambda: fusion.Regression(error=A),
    "a nested tensor as a temperature": lambda: F.triangle_info_nce(A, B, A, NESTED),
    "a nested tensor as a target": lambda: fusion.Regression().loss(A[:, :1], NESTED),
    "a nested tensor as classes": lambda: fusion.Classification(4).loss(A, NESTED),
    "a nested tensor as a count": lambda: information.ConcatenatedCritic(3, 3, hidden_layers=NESTED),
    "a number as bounds": lambda: omib.OMIB(ENCODERS, 4, fusion.Classification(2), logvar_bounds=1.0),
    "a 0-d tensor as bounds": lambda: omib.OMIB(ENCODERS, 4, fusion.Classification(2), logvar_bounds=torch.tensor(1.0)),
    "a parameter as beta": lambda: omib.OMIB(ENCODERS, 4, fusion.Classification(2), beta=torch.nn.Parameter(A)),
    "two lines as betas": lambda: fusion.DeepIB(ENCODERS, 4, fusion.Classification(2), beta="two\nlines"),
    "a list of a tensor and nothing": lambda: omib.f1_at_true_count([torch._neg_view(A), None], [0, 1]),
    "a ragged list as samples": lambda: information.estimate(A, [A, None]),
    "two dtypes in a critic": lambda: information.CosineCritic()(A, B.double()),
    "a meta tensor as a parent": lambda: bottleneck.GaussianEncoder(4, 2)(A.to("meta")),
    "a nested tensor as a parent": lambda: bottleneck.GaussianEncoder(3, 2)(NESTED),
    "a critic of one argument": lambda: information.MutualInformation(torch.nn.Identity()),
    "samples of NaN": lambda: information.gaussian_mutual_information(torch.full((40, 2), math.nan), torch.ones(40, 2)),
}


@pytest.mark.parametrize("what", ODD_VALUES)
def test_odd_values_are_refused_in_one_line_of_ours(what) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        ODD_VALUES[what]()
    assert re.match(r"[A-Za-z_0-9]+: ", str(caught.value))
    assert "\n" not in str(caught.value)
