"""Modules made on the meta device get the initial values of those that were not."""

import copy

import pytest
import torch
from torch import nn

from mibfast import bottleneck, information, losses, omib
from mibfast.nn import (
    Conv1dEncoder,
    Conv2dDecoder,
    Conv2dEncoder,
    LSTMEncoder,
    MLPEncoder,
    ProjectionHead,
    ResNet18Encoder,
    Standardisation,
    fusion,
)


def _encoders() -> dict[str, nn.Module]:
    return {name: MLPEncoder(5, 4, 6, 2) for name in ("image", "text")}


def _fusion(kind):
    return lambda: kind(_encoders(), 4, fusion.Classification(3))


STATISTICS = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0])
MODULES = {
    "InfoNCELoss": lambda: losses.InfoNCELoss(0.3, learnable_temperature=True),
    "PairwiseCLIPLoss": lambda: losses.PairwiseCLIPLoss(0.3, learnable_temperature=True),
    "PairwiseCLIPIBLoss": lambda: losses.PairwiseCLIPIBLoss(0.3, learnable_temperature=True),
    "GRAMLoss": lambda: losses.GRAMLoss(0.3, learnable_temperature=True),
    "TRIANGLELoss": lambda: losses.TRIANGLELoss(0.3, learnable_temperature=True),
    "SymileLoss": lambda: losses.SymileLoss(3.0, learnable_scale=True),
    "SigLIPLoss": lambda: losses.SigLIPLoss(7.0, -3.0),
    "OVAIBLoss": losses.OVAIBLoss,
    "BarlowTwinsLoss": losses.BarlowTwinsLoss,
    "LearnedProjectorOVAIBLoss": lambda: losses.LearnedProjectorOVAIBLoss(3, 4),
    "SeparableCritic": lambda: information.SeparableCritic(5, 4),
    "BilinearCritic": lambda: information.BilinearCritic(5, 4),
    "CosineCritic": lambda: information.CosineCritic(0.3, learnable_temperature=True),
    "ConcatenatedCritic": lambda: information.ConcatenatedCritic(5, 4, 6, 2),
    "MutualInformation": lambda: information.MutualInformation(information.SeparableCritic(5, 4), "mine"),
    "MLPEncoder": lambda: MLPEncoder(5, 4, 6, 2),
    "ProjectionHead": lambda: ProjectionHead(5, 4),
    "Conv1dEncoder": lambda: Conv1dEncoder(5, 4),
    "LSTMEncoder": lambda: LSTMEncoder(5, 4),
    "Conv2dEncoder": lambda: Conv2dEncoder((1, 16, 16), 4),
    "Conv2dDecoder": lambda: Conv2dDecoder(4, (1, 16, 16)),
    "Standardisation": lambda: Standardisation(*STATISTICS),
    "GaussianEncoder": lambda: bottleneck.GaussianEncoder(5, 4),
    "BottleneckLoss": lambda: bottleneck.methods.dvsib_no_reconstruction().build(
        {"ZX": bottleneck.GaussianEncoder(5, 4), "ZY": bottleneck.GaussianEncoder(6, 4)},
        critics=information.SeparableCritic(4, 4),
    ),
    "AnomalyDetection": lambda: fusion.AnomalyDetection(3),
    "OMIB": _fusion(omib.OMIB),
    **{
        name: _fusion(kind)
        for name, kind in vars(fusion).items()
        if isinstance(kind, type) and issubclass(kind, fusion.FusionModel) and kind is not fusion.FusionModel
    },
}


@pytest.mark.parametrize("name", [*MODULES, "ResNet18Encoder"])
def test_a_module_of_the_meta_device_gets_the_initial_values_of_another(name) -> None:
    if name == "ResNet18Encoder":
        pytest.importorskip("torchvision")
    make = MODULES.get(name, lambda: ResNet18Encoder((3, 32, 32), 4))
    torch.manual_seed(5)
    expected = copy.deepcopy(make().state_dict())
    with torch.device("meta"):
        module = make()
    module.to_empty(device="cpu")
    with torch.no_grad():
        for x in (*module.parameters(), *module.buffers()):
            x.fill_(3)
    torch.manual_seed(5)
    module.reset_parameters()
    found = module.state_dict()
    assert list(found) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0, equal_nan=True, msg=key)


def test_a_part_that_cannot_be_reset_is_named() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

    encoders = {"image": Stubborn(), "text": nn.Linear(3, 4)}
    model = fusion.Concatenation(encoders, 4, fusion.Classification(3))
    with pytest.raises(TypeError, match="reset_parameters: Stubborn has parameters and no reset_parameters"):
        model.reset_parameters()
