"""Networks of DCGAN: a strided convolutional encoder from images to codes, and its mirror as a decoder.

A. Radford et al., "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks", 2015,
arXiv 1511.06434 (§3: the guidelines; §4: the initial weights).
"""

from __future__ import annotations

from torch import Tensor, nn

from anomaly.errors import UsageError


class DcganEncoder(nn.Module):
    """Encoder from images to codes: 4×4 convolutions of stride 2 that double the channels down to 4×4, then one 4×4.

    Leaky ReLU with slope 0.2; batch norm in all layers except the first and the last; no biases.

    Args:
        size: side of the square input in pixels, a power of two, at least 16.
        width: number of channels of the first level.
        outputs: number of channels of the code; 1 for a discriminator, whose code is the logit.

    Raises:
        UsageError: invalid size.
    """

    def __init__(self, *, size: int, width: int, outputs: int) -> None:
        super().__init__()
        levels: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(3, width, 4, stride=2, padding=1, bias=False), nn.LeakyReLU(0.2))
        ]
        for _ in range(num_halvings(size) - 1):
            levels.append(
                nn.Sequential(
                    nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(2 * width),
                    nn.LeakyReLU(0.2),
                )
            )
            width *= 2
        self.features = nn.Sequential(*levels)
        """All layers before the last, one entry per level: (N, width · 2^k, size / 2^(k + 1), size / 2^(k + 1))"""
        self.head = nn.Conv2d(width, outputs, 4, bias=False)
        self.apply(init_dcgan)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, size, size) to codes (N, outputs, 1, 1)."""
        return self.head(self.features(x))  # type: ignore[no-any-return]


class DcganDecoder(nn.Module):
    """Decoder from codes to images in [-1, 1]: the encoder's mirror of transposed convolutions, with ReLU and a final tanh.

    Args:
        size: side of the square output in pixels, a power of two, at least 16.
        width: number of channels of the last level before the image.
        inputs: number of channels of the code.

    Raises:
        UsageError: invalid size.
    """

    def __init__(self, *, size: int, width: int, inputs: int) -> None:
        super().__init__()
        num = num_halvings(size)
        widths = [width * 2**level for level in reversed(range(num))]
        layers: list[nn.Module] = [nn.ConvTranspose2d(inputs, widths[0], 4, bias=False)]
        for coarse, fine in zip(widths, [*widths[1:], 3], strict=True):
            layers += [
                nn.BatchNorm2d(coarse),
                nn.ReLU(),
                nn.ConvTranspose2d(coarse, fine, 4, stride=2, padding=1, bias=False),
            ]
        self.layers = nn.Sequential(*layers, nn.Tanh())
        self.apply(init_dcgan)

    def forward(self, z: Tensor) -> Tensor:
        """Map codes (N, inputs, 1, 1) to images (N, 3, size, size)."""
        return self.layers(z)  # type: ignore[no-any-return]


def num_halvings(size: int) -> int:
    """Number of halvings from `size` to 4.

    Raises:
        UsageError: the size is not a power of two, or less than 16.
    """
    if size < 16 or size & (size - 1):
        raise UsageError(
            f"size {size}: this network halves its input down to 4, so use a power of two from 16 up,"
            f" e.g. {max(16, 2 ** (size.bit_length() - 1))}"
        )
    return size.bit_length() - 3


def init_dcgan(module: nn.Module) -> None:
    """Initialise one layer (§4.1): convolution weights from N(0, 0.02²), batch norm weights from N(1, 0.02²), biases 0."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        module.reset_running_stats()
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
