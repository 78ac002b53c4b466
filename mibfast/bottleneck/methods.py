"""Published methods as bottlenecks, by their graphs alone (Abdelaleem, Nemenman and Martini, JMLR 26, 2025).

X and Y are the two views, or the data and its label; Z, ZX and ZY latents; WX and WY private ones. Beta weighs what is
predicted. What is not listed is a pair of graphs away.
"""

from __future__ import annotations

from collections.abc import Mapping

from mibfast.bottleneck.formulation import Bottleneck
from mibfast.bottleneck.likelihoods import Likelihood

_PRIVATE = "X -> WX, Y -> WY"
_PRIVATE_DECODER = "Z -> X, WX -> X, Z -> Y, WY -> Y"


def beta_vae(beta: float = 1.0) -> Bottleneck:
    """beta-VAE: compress X, reconstruct X (Higgins et al., 2017, whose beta is the inverse of this one)."""
    return Bottleneck("X -> Z", "Z -> X", beta)


def dvib(beta: float = 1.0, likelihoods: Mapping[str, str | Likelihood] | None = None) -> Bottleneck:
    """DVIB: compress X, predict Y (Alemi et al., 2017); `likelihoods={"Y": "categorical"}` for labels."""
    return Bottleneck("X -> Z", "Z -> Y", beta, likelihoods=likelihoods)


def dvcca() -> Bottleneck:
    """DVCCA: compress X, reconstruct X and Y (Wang et al., 2016), which is beta-DVCCA at beta = 1."""
    return beta_dvcca(1.0)


def beta_dvcca(beta: float = 1.0) -> Bottleneck:
    """beta-DVCCA: compress X, reconstruct X and Y."""
    return Bottleneck("X -> Z", "Z -> X, Z -> Y", beta)


def beta_joint_dvcca(beta: float = 1.0) -> Bottleneck:
    """beta-joint-DVCCA: compress X and Y jointly, reconstruct both."""
    return Bottleneck("X -> Z, Y -> Z", "Z -> X, Z -> Y", beta)


def beta_dvcca_private(beta: float = 1.0) -> Bottleneck:
    """beta-DVCCA-private: beta-DVCCA, with a latent for each view alone."""
    return Bottleneck(f"X -> Z, {_PRIVATE}", _PRIVATE_DECODER, beta)


def beta_joint_dvcca_private(beta: float = 1.0) -> Bottleneck:
    """beta-joint-DVCCA-private: beta-joint-DVCCA, with a latent for each view alone."""
    return Bottleneck(f"X -> Z, Y -> Z, {_PRIVATE}", _PRIVATE_DECODER, beta)


def dvsib(beta: float = 128.0) -> Bottleneck:
    """DVSIB: compress each view into its own latent, reconstruct each, keep the latents informative of each other."""
    return Bottleneck("X -> ZX, Y -> ZY", "ZX -> X, ZY -> Y, ZX -- ZY", beta)


def dvsib_private(beta: float = 128.0) -> Bottleneck:
    """DVSIB-private: DVSIB, with a further latent for each view alone."""
    return Bottleneck(f"X -> ZX, Y -> ZY, {_PRIVATE}", "ZX -> X, WX -> X, ZY -> Y, WY -> Y, ZX -- ZY", beta)


def dvsib_no_reconstruction(beta: float = 128.0) -> Bottleneck:
    """DVSIB-noRecon: DVSIB without reconstruction."""
    return Bottleneck("X -> ZX, Y -> ZY", "ZX -- ZY", beta)


def mvib(beta: float = 1.0) -> Bottleneck:
    """MVIB: each view's latent compressed towards the other's encoder (Federici et al., 2020).

    The released code trains it with `estimator="js"`'s gradient, and with the inverse of this beta raised from 1e-3 to
    1; its single-sample KL divergences are exact here.
    """
    return Bottleneck("X -> ZX, Y -> ZY", "ZX -- ZY", beta, compression="other_encoder")


def deterministic_symmetric() -> Bottleneck:
    """The deterministic symmetric bottleneck: nothing compressed but by the width of the latents."""
    return Bottleneck("X => ZX, Y => ZY", "ZX -- ZY")


def clip() -> Bottleneck:
    """CLIP (Radford et al., 2021), deterministic: build with `estimator="clip"` and a `CosineCritic`.

    The loss is then CLIP's, less ln N. :func:`mibfast.information.clip_terms` splits it into a bound on the latents'
    information and the correction that CLIP adds.
    """
    return deterministic_symmetric()


def barlow_twins() -> Bottleneck:
    """Barlow Twins (Zbontar et al., 2021), deterministic with jointly Gaussian latents: `estimator="barlow_twins"`.

    `estimator="gaussian"` maximises the information that its two terms push towards.
    """
    return deterministic_symmetric()
