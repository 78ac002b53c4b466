"""Errors come early and say what came in."""

import math
import os
import subprocess
import sys
import threading

import pytest
import torch

import mibfast
from mibfast import functional as F
from mibfast import losses

A, B = torch.randn(6, 4), torch.randn(6, 4)
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
    (lambda: F.one_vs_all_info_nce([A, B], reduction="sum"), ValueError, r"reduction must be one of 'mean', 'none'"),
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
    (lambda: F.info_nce(A[:4], B, symmetric=True), ValueError, r"symmetric=True needs as many keys as queries"),
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
    (lambda: F.gaussian_kl(A, B, reduction="avg"), ValueError, r"'none', 'batchmean', 'mean', 'sum', got str 'avg'"),
    (lambda: F.product_of_experts([A, B], [A, B, A]), ValueError, r"as many means as logvars, got 2 and 3"),
    (lambda: F.product_of_experts([A, B], [A[:5], B[:5]]), ValueError, r"means and logvars must have one shape"),
    (lambda: F.ridge_projection(A, B), ValueError, r"basis must be \[\.\.\., K, d\] for a target \[\.\.\., d\]"),
    (lambda: F.ridge_projection(A, A[:, None], ridge="small"), TypeError, r"ridge must be a number, got str 'small'"),
    (lambda: F.projection_score(A, B), ValueError, r"context must be \[Q, K, d\], got a tensor of shape \[6, 4\]"),
    (lambda: F.leave_one_out_projection([A.bool(), B.bool()]), TypeError, r"must be float64, float32, bfloat16"),
    (lambda: F.symile_info_nce([A, B], 0.0), ValueError, r"symile_info_nce: scale must be positive, got 0.0"),
    (lambda: F.symile_info_nce([A, B], math.inf), ValueError, r"scale must be finite and at least 0, got inf"),
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
    (lambda: losses.SymileLoss(0), ValueError, r"SymileLoss: scale must be positive, got 0"),
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
    (lambda: F.siglip(A, B, reduction="sum"), ValueError, r"reduction must be one of 'mean', 'none'"),
    (lambda: F.top_k(A, B, 7), ValueError, r"top_k: k must be at most the number of candidates, got k = 7 and C = 6"),
    (lambda: F.top_k(A, B, 0), ValueError, r"top_k: k must be at least 1, got 0"),
    (lambda: F.top_k(A, B, 2.0), TypeError, r"top_k: k must be an int, got float 2.0"),
    (lambda: F.top_k(A, B[:, :3], 2), ValueError, r"top_k: query and key must have one last dimension"),
    (lambda: F.top_k(A, B, 2, score="distance"), ValueError, r"top_k: score must be one of 'inner_product', 'cosine'"),
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
    (lambda: losses.SigLIPLoss(scale=0), ValueError, r"SigLIPLoss: scale must be positive, got 0"),
    (lambda: losses.SigLIPLoss(bias=math.nan), ValueError, r"SigLIPLoss: bias must be finite, got nan"),
    (lambda: losses.SigLIPLoss()([A]), ValueError, r"SigLIPLoss: embeddings must hold at least 2"),
    (lambda: losses.OVAIBLoss(temperature=0), ValueError, r"OVAIBLoss: temperature must be positive, got 0"),
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
        r"LearnedProjectorOVAIBLoss: temperature must be positive, got 0",
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
    (lambda: F.critic_log_sum_exp(A[:5], B, columns=True), ValueError, r"columns=True needs .* N = 5 and N' = 6"),
    (lambda: F.critic_log_sum_exp(A, B, clip=0.0), ValueError, r"clip must be positive, got 0.0"),
    (lambda: F.critic_log_sum_exp(A, B, clip=-1.0), ValueError, r"clip must be finite and at least 0, got -1.0"),
    (lambda: F.critic_log_sum_exp(A, B, A[0]), ValueError, r"weight must be None for score='inner_product', got a ten"),
    (lambda: F.critic_log_sum_exp(A, B, score="bilinear"), ValueError, r"score must be one of 'inner_product', 'addit"),
    (
        lambda: F.critic_softplus(A, B, score="additive"),
        ValueError,
        r"score='additive' needs a weight",
    ),
    (lambda: F.critic_log_mean_exp(A[:1], B[:1]), ValueError, r"critic_log_mean_exp: a batch of N = 1 has no pairs"),
    (lambda: F.critic_log_mean_exp(A, B, clip=0.0), ValueError, r"critic_log_mean_exp: clip must be positive, got 0.0"),
    (lambda: F.critic_mean_softplus(A, B, positives="False"), TypeError, r"positives must be True or False, got str"),
    (lambda: F.critic_mean_softplus(A, B, log_mean_exp=1), TypeError, r"log_mean_exp must be True or False, got int 1"),
    (lambda: F.critic_log_sum_exp(A, B, positive="False"), TypeError, r"positive must be True or False, got str"),
    (lambda: F.critic_log_sum_exp(A, B, columns="False"), TypeError, r"columns must be True or False, got str"),
    (lambda: F.critic_softplus(A, B, positive="False"), TypeError, r"positive must be True or False, got str"),
    (lambda: F.info_nce(A, B, symmetric="False"), TypeError, r"symmetric must be True or False, got str 'False'"),
    (
        lambda: F.info_nce(A, B, positive_in_denominator="False"),
        TypeError,
        r"positive_in_denominator must be True or False, got str 'False'",
    ),
    (
        lambda: F.one_vs_all_info_nce([A, B, A], positive_in_denominator="False"),
        TypeError,
        r"positive_in_denominator must be True or False, got str 'False'",
    ),
    (
        lambda: F.mutual_information(A @ A.mT, "smile", clip_joint="False"),
        TypeError,
        r"clip_joint must be True or False, got str 'False'",
    ),
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
