"""Encoders and decoders of images: convolutions of stride 2, and ResNet-18 where torchvision is installed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from mibfast import _check
from mibfast._modules import ResettableModule

# ResNet's first layers would leave a few pixels of smaller images.
_SMALLEST_FOR_STEM = 64


def _checked_shape(name: str, shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ValueError(f"{name}: shape must be (channels, height, width), got {tuple(shape)}")
    for argument, size in zip(("channels", "height", "width"), shape, strict=True):
        _check.count(name, argument, size)
    channels, height, width = shape
    return channels, height, width


def _sizes(size: int, depth: int) -> list[int]:
    """Return a length before and after each of `depth` convolutions of stride 2."""
    sizes = [size]
    for _ in range(depth):
        sizes.append(-(-sizes[-1] // 2))
    return sizes


class Conv2dEncoder(ResettableModule):
    """An encoder of images: 3 x 3 convolutions with ReLU, and one linear layer.

    Each convolution halves height and width; each but the first doubles the channels.

    Parameters
    ----------
    shape : (int, int, int)
        Channels, height and width of an image.
    out_features : int
        Length of a representation.
    channels : int
        Number of channels after the first convolution.
    depth : int
        Number of convolutions, >= 1.

    Raises
    ------
    TypeError, ValueError
        For sizes that are not positive integers, or a shape that is not three of them.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn import Conv2dEncoder
    >>> Conv2dEncoder((1, 28, 28), 256)(torch.zeros(8, 1, 28, 28)).shape
    torch.Size([8, 256])
    """

    def __init__(self, shape: Sequence[int], out_features: int = 256, channels: int = 32, depth: int = 2) -> None:
        super().__init__()
        name = type(self).__name__
        inputs, height, width = _checked_shape(name, shape)
        for argument, size in {"out_features": out_features, "channels": channels, "depth": depth}.items():
            _check.count(name, argument, size)
        widths = [inputs, *(channels * 2**each for each in range(depth))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.output = nn.Linear(widths[-1] * _sizes(height, depth)[-1] * _sizes(width, depth)[-1], out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Encode images [N, channels, height, width] to representations [N, out_features]."""
        result: Tensor = self.output(self.convolutions(x).flatten(1))
        return result


class Conv2dDecoder(ResettableModule):
    """A decoder of images, with the layers of :class:`Conv2dEncoder` in reverse.

    One linear layer, then transposed convolutions, each of which doubles height and width.

    Parameters
    ----------
    in_features : int
        Length of a latent.
    shape : (int, int, int)
        Channels, height and width of an image.
    channels : int
        Number of channels before the last transposed convolution.
    depth : int
        Number of transposed convolutions, >= 1.

    Raises
    ------
    TypeError, ValueError
        For sizes that are not positive integers, or a shape that is not three of them.

    Examples
    --------
    >>> import torch
    >>> from mibfast.nn import Conv2dDecoder
    >>> Conv2dDecoder(16, (1, 28, 28))(torch.zeros(8, 16)).shape
    torch.Size([8, 1, 28, 28])
    """

    def __init__(self, in_features: int, shape: Sequence[int], channels: int = 32, depth: int = 2) -> None:
        super().__init__()
        name = type(self).__name__
        outputs, height, width = _checked_shape(name, shape)
        for argument, size in {"in_features": in_features, "channels": channels, "depth": depth}.items():
            _check.count(name, argument, size)
        widths = [*(channels * 2**each for each in reversed(range(depth))), outputs]
        heights, columns = _sizes(height, depth)[::-1], _sizes(width, depth)[::-1]
        self.input = nn.Linear(in_features, widths[0] * heights[0] * columns[0])
        layers: list[nn.Module] = [nn.Unflatten(1, (widths[0], heights[0], columns[0]))]
        for position, (before, after) in enumerate(pairwise(widths)):
            # A transposed convolution takes k to 2 k - 1 pixels; the one that an even length lacks is added.
            added = tuple(each[position + 1] - 2 * each[position] + 1 for each in (heights, columns))
            layers += [nn.ReLU(), nn.ConvTranspose2d(before, after, 3, 2, 1, (added[0], added[1]))]
        self.convolutions = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Decode latents [N, in_features] to images [N, channels, height, width], of any real value."""
        result: Tensor = self.convolutions(self.input(z))
        return result


class ResNet18Encoder(ResettableModule):
    """ResNet-18 (He et al., 2016) of torchvision, randomly initialised, with a last layer of `out_features`.

    For images smaller than 64 pixels the first convolution is 3 x 3 with stride 1, and no pooling follows, as is usual
    for CIFAR.

    Parameters
    ----------
    shape : (int, int, int)
        Channels, height and width of an image.
    out_features : int
        Length of a representation.

    Raises
    ------
    ImportError
        Where torchvision is not installed.
    TypeError, ValueError
        For sizes that are not positive integers, or a shape that is not three of them.
    """

    def __init__(self, shape: Sequence[int], out_features: int = 256) -> None:
        super().__init__()
        name = type(self).__name__
        inputs, height, width = _checked_shape(name, shape)
        _check.count(name, "out_features", out_features)
        try:
            from torchvision.models import resnet18
        except ImportError as error:
            raise ImportError(f"{name} needs torchvision; pip install torchvision") from error
        self.shape, self.out_features = tuple(shape), out_features
        self.network: nn.Module = resnet18(weights=None, num_classes=out_features)
        if min(height, width) < _SMALLEST_FOR_STEM:
            self.network.conv1 = nn.Conv2d(inputs, 64, 3, 1, 1, bias=False)
            self.network.maxpool = nn.Identity()
        else:
            self.network.conv1 = nn.Conv2d(inputs, 64, 7, 2, 3, bias=False)

    def reset_parameters(self) -> None:
        """Give all parameters initial values as torchvision's constructor draws them; its layers' own differ."""
        self.load_state_dict(ResNet18Encoder(self.shape, self.out_features).state_dict())

    def forward(self, x: Tensor) -> Tensor:
        """Encode images [N, channels, height, width] to representations [N, out_features]."""
        result: Tensor = self.network(x)
        return result
