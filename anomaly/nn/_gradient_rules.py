"""Rules of reverse mode: the result and the pullback of each supported operation (see `input_gradient`).

Notation: x -> input; y -> result; g -> derivative of one scalar per image with respect to y.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn import functional

from anomaly.errors import UsageError

Pullback = Callable[[Tensor], tuple[Tensor, ...]]
Rule = Callable[..., tuple[Tensor, Pullback]]
KNOWN = (
    "resnet18, wide_resnet50_2, mobilenetv2_100, mobilenetv3_large_100, efficientnet_b0,"
    " tf_efficientnet_lite0, vgg16, alexnet, squeezenet1_1"
)
"""Names of supported backbones"""
CORNER = 1e5
"""Width of a rounded corner in units of machine epsilon times the mean |x|: 1.2e-2 · |x| in float32, 2e-11 · |x| in float64"""
LOWEST = -1e30
"""Padding below any activation, finite so that its product with zero is zero"""


def _per_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def unsupported(operation: str) -> UsageError:
    return UsageError(
        f"the gradient map does not support {operation} of this backbone: use another backbone, e.g. one of {KNOWN}"
    )


def _conv(inputs: list[Tensor], module: nn.Conv2d) -> tuple[Tensor, Pullback]:
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise unsupported(f"padding {module.padding!r} ({module.padding_mode}) of Conv2d")
    (x,) = inputs
    stride, padding, dilation = module.stride, module.padding, module.dilation
    y = functional.conv2d(x, module.weight, module.bias, stride, padding, dilation, module.groups)
    # rows and columns at the end that no kernel position covers
    unused = [
        x.shape[d + 2]
        + 2 * padding[d]
        - dilation[d] * (module.kernel_size[d] - 1)
        - 1
        - (y.shape[d + 2] - 1) * stride[d]
        for d in (0, 1)
    ]

    def pullback(g: Tensor) -> tuple[Tensor, ...]:
        return (functional.conv_transpose2d(g, module.weight, None, stride, padding, unused, module.groups, dilation),)

    return y, pullback


def _conv_same(inputs: list[Tensor], module: Conv2dSame) -> tuple[Tensor, Pullback]:
    """Convolution with TensorFlow's padding, which can be wider at the end of an axis."""
    (x,) = inputs
    before, after = [], []
    for d in (0, 1):
        length, stride = x.shape[d + 2], module.stride[d]
        reach = module.dilation[d] * (module.kernel_size[d] - 1) + 1
        missing = max(0, (-(-length // stride) - 1) * stride + reach - length)
        before.append(missing // 2)
        after.append(missing - missing // 2)
    padded = functional.pad(x, (before[1], after[1], before[0], after[0]))
    y, back = _conv([padded], module)

    def pullback(g: Tensor) -> tuple[Tensor, ...]:
        (share,) = back(g)
        rows, columns = (slice(before[d], before[d] + x.shape[d + 2]) for d in (0, 1))
        return (share[:, :, rows, columns],)

    return y, pullback


def _batch_norm(inputs: list[Tensor], module: nn.BatchNorm2d) -> tuple[Tensor, Pullback]:
    mean, variance, weight = module.running_mean, module.running_var, module.weight
    if mean is None or variance is None or weight is None:
        raise unsupported("BatchNorm2d without statistics or weights")
    y = functional.batch_norm(inputs[0], mean, variance, weight, module.bias, False, 0.0, module.eps)
    slope = _per_channel(weight * torch.rsqrt(variance + module.eps))
    return y, lambda g: (g * slope,)


def _batch_norm_act(inputs: list[Tensor], module: Any) -> tuple[Tensor, Pullback]:
    y, norm_back = _batch_norm(inputs, module)
    y, act_back = module_rule(module.act)([y], module.act)
    return y, lambda g: norm_back(act_back(g)[0])


def _band(x: Tensor) -> Tensor:
    """Width (N, 1, 1, 1) of the band of a rounded corner: a share of each image's mean |x|."""
    return CORNER * torch.finfo(x.dtype).eps * x.abs().mean(dim=(2, 3), keepdim=True).mean(dim=1, keepdim=True) + 1e-30


def _above(x: Tensor, corner: float, band: Tensor) -> Tensor:
    """Slope of max(x - corner, 0): 0 below the corner, 1 above, linear within the band."""
    return ((x - corner) / band + 0.5).clamp(0, 1)


def _relu(inputs: list[Tensor], *_: object, **__: object) -> tuple[Tensor, Pullback]:
    (x,) = inputs
    return functional.relu(x), lambda g: (g * _above(x, 0, _band(x)),)


def _relu6(inputs: list[Tensor], *_: object) -> tuple[Tensor, Pullback]:
    (x,) = inputs
    return functional.relu6(x), lambda g: (g * (_above(x, 0, _band(x)) - _above(x, 6, _band(x))),)


def _leaky_relu(inputs: list[Tensor], module: nn.LeakyReLU) -> tuple[Tensor, Pullback]:
    (x,) = inputs
    slope = module.negative_slope
    return functional.leaky_relu(x, slope), lambda g: (g * (slope + (1 - slope) * _above(x, 0, _band(x))),)


def _sigmoid(inputs: list[Tensor], *_: object) -> tuple[Tensor, Pullback]:
    y = torch.sigmoid(inputs[0])
    return y, lambda g: (g * y * (1 - y),)


def _silu(inputs: list[Tensor], *_: object, **__: object) -> tuple[Tensor, Pullback]:
    (x,) = inputs
    s = torch.sigmoid(x)
    return x * s, lambda g: (g * s * (1 + x * (1 - s)),)


def _hardsigmoid(inputs: list[Tensor], *_: object) -> tuple[Tensor, Pullback]:
    (x,) = inputs
    return functional.hardsigmoid(x), lambda g: (g / 6 * (_above(x, -3, _band(x)) - _above(x, 3, _band(x))),)


def _hardswish(inputs: list[Tensor], *_: object) -> tuple[Tensor, Pullback]:
    (x,) = inputs

    def pullback(g: Tensor) -> tuple[Tensor, ...]:  # slope 0 below -3, x/3 + 1/2 between, 1 above 3
        low, high = _above(x, -3, _band(x)), _above(x, 3, _band(x))
        return (g * ((x / 3 + 0.5) * (low - high) + high),)

    return functional.hardswish(x), pullback


def _max_pool(inputs: list[Tensor], module: nn.MaxPool2d) -> tuple[Tensor, Pullback]:
    if _pair(module.dilation) != (1, 1):
        raise unsupported("dilation of MaxPool2d")
    (x,) = inputs
    kernel, stride, padding = _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)
    y = functional.max_pool2d(x, kernel, stride, padding, ceil_mode=module.ceil_mode)

    def pullback(g: Tensor) -> tuple[Tensor, ...]:
        num = kernel[0] * kernel[1]
        one_hot = torch.eye(num, device=x.device, dtype=x.dtype).view(num, 1, *kernel)
        missing = [(y.shape[d + 2] - 1) * stride[d] + kernel[d] - padding[d] - x.shape[d + 2] for d in (0, 1)]
        frame = (padding[1], missing[1], padding[0], missing[0])
        padded = functional.pad(x.reshape(-1, 1, *x.shape[2:]), frame, value=LOWEST)
        window = functional.conv2d(padded, one_hot, stride=stride)  # (N·C, k², h, w)
        top = y.reshape(-1, 1, *y.shape[2:])
        band = _band(x).expand(-1, x.shape[1], -1, -1).reshape(-1, 1, 1, 1)
        share = ((window - top) / band + 1).clamp(min=0)  # 1 for the maximum, 0 one band below it
        share = share / share.sum(dim=1, keepdim=True) * g.reshape(top.shape)
        return (_spread(share, one_hot, stride, padding, x),)

    return y, pullback


def _avg_pool(inputs: list[Tensor], module: nn.AvgPool2d) -> tuple[Tensor, Pullback]:
    if module.divisor_override:
        raise unsupported("divisor_override of AvgPool2d")
    (x,) = inputs
    kernel, stride, padding = _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)
    y = functional.avg_pool2d(x, kernel, stride, padding, module.ceil_mode, module.count_include_pad)

    def pullback(g: Tensor) -> tuple[Tensor, ...]:
        counts = []
        for d in (0, 1):
            length, along = x.shape[d + 2], []
            for n in range(y.shape[d + 2]):
                start = n * stride[d] - padding[d]
                end = min(start + kernel[d], length + padding[d])
                along.append(end - start if module.count_include_pad else min(end, length) - max(start, 0))
            counts.append(torch.tensor(along, device=x.device, dtype=x.dtype))
        ones = torch.ones(1, 1, *kernel, device=x.device, dtype=x.dtype)
        share = (g / (counts[0][:, None] * counts[1])).reshape(-1, 1, *y.shape[2:])
        return (_spread(share, ones, stride, padding, x),)

    return y, pullback


def _spread(share: Tensor, kernel: Tensor, stride: tuple[int, int], padding: tuple[int, int], x: Tensor) -> Tensor:
    """Add the share of each element of each pooling window to a map with the shape of x."""
    whole = functional.conv_transpose2d(share, kernel, stride=stride)
    below, right = (x.shape[d + 2] + padding[d] - whole.shape[d + 2] for d in (0, 1))
    return functional.pad(whole, (-padding[1], right, -padding[0], below)).reshape(x.shape)


def _global_mean(inputs: list[Tensor], dim: Any, keepdim: bool = False) -> tuple[Tensor, Pullback]:
    if tuple(dim) not in ((2, 3), (-2, -1)):
        raise unsupported(f"a mean over {dim}")
    (x,) = inputs
    num = x.shape[2] * x.shape[3]
    return x.mean(dim=(2, 3), keepdim=keepdim), lambda g: ((g / num).reshape(*x.shape[:2], 1, 1).expand_as(x),)


def _adaptive_avg_pool(inputs: list[Tensor], module: nn.AdaptiveAvgPool2d) -> tuple[Tensor, Pullback]:
    if module.output_size not in (1, (1, 1)):
        raise unsupported(f"AdaptiveAvgPool2d to {module.output_size}")
    return _global_mean(inputs, (2, 3), keepdim=True)


def _summed_to(g: Tensor, x: Tensor) -> Tensor:
    """Sum g over the broadcast dimensions, to the shape of x (N, ...)."""
    repeated = [d for d in range(1, x.dim()) if x.shape[d] == 1 and g.shape[d] != 1]
    return g.sum(dim=repeated, keepdim=True) if repeated else g


def _add(inputs: list[Tensor], *constant: float) -> tuple[Tensor, Pullback]:
    y = sum(inputs[1:], inputs[0]) + sum(constant)
    return y, lambda g: tuple(_summed_to(g, x) for x in inputs)


def _mul(inputs: list[Tensor], *constant: float) -> tuple[Tensor, Pullback]:
    if constant:
        return inputs[0] * constant[0], lambda g: (g * constant[0],)
    a, b = inputs
    return a * b, lambda g: (_summed_to(g * b, a), _summed_to(g * a, b))


def _cat(inputs: list[Tensor], dim: int = 0) -> tuple[Tensor, Pullback]:
    return torch.cat(inputs, dim), lambda g: torch.split(g, [x.shape[dim] for x in inputs], dim)


def _flatten(inputs: list[Tensor], *_: object) -> tuple[Tensor, Pullback]:
    (x,) = inputs
    return x.flatten(1), lambda g: (g.reshape(x.shape),)


def _same(inputs: list[Tensor], *_: object) -> tuple[Tensor, Pullback]:
    return inputs[0], lambda g: (g,)


MODULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: _conv,
    Conv2dSame: _conv_same,
    nn.BatchNorm2d: _batch_norm,
    BatchNormAct2d: _batch_norm_act,
    nn.ReLU: _relu,
    nn.ReLU6: _relu6,
    nn.LeakyReLU: _leaky_relu,
    nn.Sigmoid: _sigmoid,
    nn.SiLU: _silu,
    nn.Hardsigmoid: _hardsigmoid,
    nn.Hardswish: _hardswish,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.AdaptiveAvgPool2d: _adaptive_avg_pool,
    nn.Flatten: _flatten,
    nn.Identity: _same,
    nn.Dropout: _same,
}
FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add), _add),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), _mul),
    **dict.fromkeys((functional.relu, torch.relu, "relu"), _relu),
    **dict.fromkeys((functional.silu,), _silu),
    **dict.fromkeys((torch.sigmoid, "sigmoid"), _sigmoid),
    **dict.fromkeys((torch.flatten, "flatten"), _flatten),
    **dict.fromkeys((torch.mean, "mean"), _global_mean),
    torch.cat: _cat,
}


def module_rule(module: nn.Module) -> Rule:
    rule = MODULES.get(type(module))  # exact type: a subclass may compute something else
    if rule is None:
        raise unsupported(type(module).__name__)
    return rule
