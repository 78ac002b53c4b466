"""Encoders and decoders of images, alone, as Gaussians, and chosen by name."""

import pytest
import torch

pytest.importorskip("lightning")
from mibfast import nn
from mibfast.bottleneck import GaussianHeads
from mibfast.train.errors import RunError
from mibfast.train.fitting.encoders import build_encoder


def has_gradients(module: torch.nn.Module) -> bool:
    return all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 12, 7), (2, 1, 5)])
def test_shapes_and_gradients(shape, depth) -> None:
    encoder = nn.Conv2dEncoder(shape, 9, channels=8, depth=depth)
    decoder = nn.Conv2dDecoder(9, shape, channels=8, depth=depth)
    x = torch.rand(4, *shape)
    z = encoder(x)
    assert z.shape == (4, 9)
    found = decoder(z)
    assert found.shape == x.shape
    (found - x).square().mean().backward()
    assert has_gradients(encoder)
    assert has_gradients(decoder)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    encoder, decoder = nn.Conv2dEncoder((1, 9, 9), 5).double(), nn.Conv2dDecoder(5, (1, 9, 9)).double()
    x = torch.rand(6, 1, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(encoder(x)[2:3], encoder(x[2:3]))
    torch.testing.assert_close(decoder(encoder(x))[2:3], decoder(encoder(x[2:3])))


def test_sizes_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"Conv2dEncoder: shape must be \(channels, height, width\), got \(28, 28\)"):
        nn.Conv2dEncoder((28, 28))
    with pytest.raises((TypeError, ValueError), match="Conv2dDecoder: depth"):
        nn.Conv2dDecoder(4, (1, 8, 8), depth=0)
    with pytest.raises((TypeError, ValueError), match="Conv2dEncoder: height"):
        nn.Conv2dEncoder((1, 0, 8))
    with pytest.raises((TypeError, ValueError), match="GaussianHeads: latent_features"):
        GaussianHeads(torch.nn.Flatten(), 8, 0)


def test_gaussian_heads() -> None:
    encoder = GaussianHeads(nn.Conv2dEncoder((1, 8, 8), 16), 16, 3)
    mean, logvar = encoder(torch.rand(5, 1, 8, 8))
    assert mean.shape == logvar.shape == (5, 3)
    (mean + logvar).square().sum().backward()
    assert has_gradients(encoder)


def test_encoders_by_name() -> None:
    assert build_encoder("image", (3, 16, 16), 7, "conv2d", depth=2)(torch.rand(2, 3, 16, 16)).shape == (2, 7)
    for name in ("conv2d", "resnet18"):
        with pytest.raises(RunError, match=rf"modality 'image': {name} takes samples \[C, H, W\], got \[16, 16\]"):
            build_encoder("image", (16, 16), 7, name)
    with pytest.raises(RunError, match=r"lstm takes samples \[T, C\], got \[3, 16, 16\]"):
        build_encoder("image", (3, 16, 16), 7, "lstm")


def test_resnet_without_torchvision(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision.models", None)
    with pytest.raises(ImportError, match="ResNet18Encoder needs torchvision; pip install torchvision"):
        nn.ResNet18Encoder((3, 16, 16))
    with pytest.raises(RunError, match="modality 'image': ResNet18Encoder needs torchvision"):
        build_encoder("image", (3, 16, 16), 7, "resnet18")


@pytest.mark.parametrize("size", [12, 64])
def test_resnet(size) -> None:
    pytest.importorskip("torchvision")
    encoder = nn.ResNet18Encoder((1, size, size), 7)
    encoder(torch.rand(4, 1, size, size)).square().sum().backward()
    assert has_gradients(encoder)
    assert encoder(torch.rand(2, 1, size, size)).shape == (2, 7)
    # Larger images are shrunk fourfold before the residual blocks, smaller ones not at all.
    seen = []
    encoder.network.layer1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    encoder(torch.rand(2, 1, size, size))
    assert seen[0][2:] == ((12, 12) if size == 12 else (16, 16))
