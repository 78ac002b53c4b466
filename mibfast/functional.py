"""Operations on tensors. Losses and information are in nats; all but `top_k` are differentiable.

Each operation is documented where it is defined, in `mibfast.ops`.
"""

from mibfast.ops.barlow_twins import barlow_twins, barlow_twins_terms
from mibfast.ops.critic_log_mean_exp import critic_log_mean_exp
from mibfast.ops.critic_log_sum_exp import critic_log_sum_exp
from mibfast.ops.critic_mean_softplus import critic_mean_softplus
from mibfast.ops.critic_softplus import critic_softplus
from mibfast.ops.gaussian_kl import gaussian_kl
from mibfast.ops.gram_info_nce import gram_info_nce
from mibfast.ops.gram_volume import gram_volume
from mibfast.ops.info_nce import info_nce
from mibfast.ops.leave_one_out_projection import leave_one_out_projection
from mibfast.ops.mutual_information import mutual_information
from mibfast.ops.one_vs_all_info_nce import one_vs_all_info_nce
from mibfast.ops.one_vs_all_minimality import one_vs_all_minimality
from mibfast.ops.partial_lse import partial_lse
from mibfast.ops.product_of_experts import product_of_experts
from mibfast.ops.projection_score import projection_score
from mibfast.ops.reparameterised_gaussian import reparameterised_gaussian
from mibfast.ops.ridge_projection import ridge_projection
from mibfast.ops.siglip import siglip
from mibfast.ops.symile_info_nce import symile_info_nce
from mibfast.ops.token_attention import token_attention
from mibfast.ops.top_k import top_k
from mibfast.ops.triangle_area import triangle_area
from mibfast.ops.triangle_info_nce import triangle_info_nce

__all__ = [
    "barlow_twins",
    "barlow_twins_terms",
    "critic_log_mean_exp",
    "critic_log_sum_exp",
    "critic_mean_softplus",
    "critic_softplus",
    "gaussian_kl",
    "gram_info_nce",
    "gram_volume",
    "info_nce",
    "leave_one_out_projection",
    "mutual_information",
    "one_vs_all_info_nce",
    "one_vs_all_minimality",
    "partial_lse",
    "product_of_experts",
    "projection_score",
    "reparameterised_gaussian",
    "ridge_projection",
    "siglip",
    "symile_info_nce",
    "token_attention",
    "top_k",
    "triangle_area",
    "triangle_info_nce",
]
