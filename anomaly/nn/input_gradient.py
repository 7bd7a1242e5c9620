"""The derivative of a frozen CNN by its input, in reverse mode, written by hand.

Automatic differentiation does not pass the exporters; the same sums written as plain operations do. A network is traced into
its operations (torch.fx); each has one rule that gives its result and its pullback: the map from g_y, the derivative of a
scalar per image by the result y, to g_x for each input x. Running the pullbacks backwards is reverse mode (Griewank and
Walther, "Evaluating Derivatives", 2008, ch. 3).

One thing differs from automatic differentiation: corners are rounded. The slope of a ReLU jumps at 0, and where an image is
flat the largest element of a max-pooling window is any of them, so that the last bit of a sum, which is another one on every
runtime, would decide whole patches of the derivative. Here the slope rises linearly over a narrow band, and elements within
a band of the largest share. The band is tied to the precision, so that in double the derivative is that of automatic
differentiation to some 10 digits. The results themselves are exact in both.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, fx, nn
from torch.nn import functional

from anomaly.errors import UsageError

Pullback = Callable[[Tensor], tuple[Tensor, ...]]
Rule = Callable[..., tuple[Tensor, Pullback]]
KNOWN = (
    "resnet18, wide_resnet50_2, mobilenetv2_100, mobilenetv3_large_100, efficientnet_b0, vgg16, alexnet, squeezenet1_1"
)
"""Backbones known to work"""
CORNER = 1e5
"""Width of a rounded corner in units of the precision and of the mean |x|: 1.2e-2 of it in single, 2e-11 in double"""
LOWEST = -1e30
"""Padding below any activation; times zero it is still zero"""


def _per_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _refuse(what: str) -> UsageError:
    return UsageError(
        f"the gradient map has no rule for {what} of this backbone: choose another one, e.g. one of {KNOWN}"
    )


def _conv(inputs: list[Tensor], module: nn.Conv2d) -> tuple[Tensor, Pullback]:
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise _refuse(f"padding {module.padding!r} ({module.padding_mode}) of Conv2d")
    (x,) = inputs
    stride, padding, dilation = module.stride, module.padding, module.dilation
    y = functional.conv2d(x, module.weight, module.bias, stride, padding, dilation, module.groups)
    # rows and columns at the end that no kernel position reached
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


def _batch_norm(inputs: list[Tensor], module: nn.BatchNorm2d) -> tuple[Tensor, Pullback]:
    mean, variance, weight = module.running_mean, module.running_var, module.weight
    if mean is None or variance is None or weight is None:
        raise _refuse("BatchNorm2d without statistics or weights")
    y = functional.batch_norm(inputs[0], mean, variance, weight, module.bias, False, 0.0, module.eps)
    slope = _per_channel(weight * torch.rsqrt(variance + module.eps))
    return y, lambda g: (g * slope,)


def _batch_norm_act(inputs: list[Tensor], module: Any) -> tuple[Tensor, Pullback]:
    y, norm_back = _batch_norm(inputs, module)
    y, act_back = _module_rule(module.act)([y], module.act)
    return y, lambda g: norm_back(act_back(g)[0])


def _band(x: Tensor) -> Tensor:
    """Width of the band in which a corner is rounded: a share of each image's mean |x|, (N, 1, 1, 1)."""
    return CORNER * torch.finfo(x.dtype).eps * x.abs().mean(dim=(2, 3), keepdim=True).mean(dim=1, keepdim=True) + 1e-30


def _above(x: Tensor, corner: float, band: Tensor) -> Tensor:
    """The slope of max(x - corner, 0): 0 below the corner, 1 above, rising linearly over the band."""
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
        raise _refuse("dilation of MaxPool2d")
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
        share = ((window - top) / band + 1).clamp(min=0)  # 1 for the largest, 0 for what lies a band below it
        share = share / share.sum(dim=1, keepdim=True) * g.reshape(top.shape)
        return (_spread(share, one_hot, stride, padding, x),)

    return y, pullback


def _avg_pool(inputs: list[Tensor], module: nn.AvgPool2d) -> tuple[Tensor, Pullback]:
    if module.divisor_override:
        raise _refuse("divisor_override of AvgPool2d")
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
    """Add what each pooling window gives to each of its elements to a map of the shape of x."""
    whole = functional.conv_transpose2d(share, kernel, stride=stride)
    below, right = (x.shape[d + 2] + padding[d] - whole.shape[d + 2] for d in (0, 1))
    return functional.pad(whole, (-padding[1], right, -padding[0], below)).reshape(x.shape)


def _global_mean(inputs: list[Tensor], dim: Any, keepdim: bool = False) -> tuple[Tensor, Pullback]:
    if tuple(dim) not in ((2, 3), (-2, -1)):
        raise _refuse(f"a mean over {dim}")
    (x,) = inputs
    num = x.shape[2] * x.shape[3]
    return x.mean(dim=(2, 3), keepdim=keepdim), lambda g: ((g / num).reshape(*x.shape[:2], 1, 1).expand_as(x),)


def _adaptive_avg_pool(inputs: list[Tensor], module: nn.AdaptiveAvgPool2d) -> tuple[Tensor, Pullback]:
    if module.output_size not in (1, (1, 1)):
        raise _refuse(f"AdaptiveAvgPool2d to {module.output_size}")
    return _global_mean(inputs, (2, 3), keepdim=True)


def _summed_to(g: Tensor, x: Tensor) -> Tensor:
    """Sum over what broadcasting repeated, so that g has the shape of x (N, ...)."""
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


def _module_rule(module: nn.Module) -> Rule:
    rule = MODULES.get(type(module))  # a subclass may compute something else
    if rule is None:
        raise _refuse(type(module).__name__)
    return rule


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in MODULES or super().is_leaf_module(m, module_qualified_name)


class _Step(NamedTuple):
    """One operation: its rule, the names of its result and of its inputs, and the rest of its arguments."""

    result: str
    rule: Rule
    inputs: list[str]
    constants: tuple[Any, ...]
    options: dict[str, Any]


class InputGradient:
    """A frozen network in eval mode that gives its result together with the pullback of the result.

    It refers to the network's own modules, and is no module itself: state and device stay the network's.

    Args:
        network: takes (N, 3, h, w); gives a map or a list of maps, of which the last one counts.
        size: h and w of an input for the check of the rules.

    Raises:
        UsageError: an operation without a rule.
    """

    def __init__(self, network: nn.Module, *, size: tuple[int, int]) -> None:
        modules = dict(network.named_modules())
        try:
            graph = _Tracer().trace(network)
        except (fx.proxy.TraceError, TypeError) as error:
            raise _refuse(f"the control flow ({error})") from error
        self._steps: list[_Step] = []
        for node in graph.nodes:
            if node.op == "placeholder":
                self._input = node.name
            elif node.op == "output":
                (result,) = node.args
                self._result = (result[-1] if isinstance(result, (list, tuple)) else result).name
            elif node.op == "call_module":
                module = modules[node.target]
                self._steps.append(_Step(node.name, _module_rule(module), [node.args[0].name], (module,), {}))
            elif node.op in ("call_function", "call_method") and node.target in FUNCTIONS:
                inside = [part for a in node.args for part in (a if isinstance(a, list) else [a])]
                named = [part.name for part in inside if isinstance(part, fx.Node)]
                constants = tuple(a for a in node.args if not isinstance(a, (fx.Node, list)))
                self._steps.append(_Step(node.name, FUNCTIONS[node.target], named, constants, dict(node.kwargs)))
            else:
                raise _refuse(f"the operation {getattr(node.target, '__name__', node.target)!r}")
        with torch.no_grad():
            result, pullback = self(torch.zeros(1, 3, *size))
            pullback(result)

    def __call__(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Run the network.

        Args:
            x: (N, 3, h, w) float.

        Returns:
            Its result (N, C, h', w') and the pullback from the derivative by the result to that by x.
        """
        values = {self._input: x}
        backs: list[tuple[_Step, Pullback]] = []
        for step in self._steps:
            inputs = [values[name] for name in step.inputs]
            values[step.result], back = step.rule(inputs, *step.constants, **step.options)
            backs.append((step, back))

        def pullback(g: Tensor) -> Tensor:
            gradients = {self._result: g}
            for step, back in reversed(backs):
                if step.result not in gradients:
                    continue  # a level that does not count
                for name, share in zip(step.inputs, back(gradients.pop(step.result)), strict=True):
                    gradients[name] = gradients[name] + share if name in gradients else share
            return gradients[self._input]

        return values[self._result], pullback
