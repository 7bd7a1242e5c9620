"""Derivative of a frozen CNN with respect to its input, in hand-written reverse mode.

Exporters do not support automatic differentiation, but they support the same sums as plain operations. torch.fx traces a
network into its operations. Each operation has one rule for its result y and its pullback: the map from g_y, the derivative
of one scalar per image with respect to y, to g_x for each input x. Running the pullbacks backwards is reverse mode (Griewank
and Walther, "Evaluating Derivatives", 2008, ch. 3).

What differs from automatic differentiation, and why: corners are rounded. The slope of a ReLU jumps at 0, and in flat regions
all elements of a max-pooling window are nearly equal. The last bit of a sum, which depends on the runtime, would then decide
whole patches of the derivative. Here the slope rises linearly over a narrow band, and elements within a band of the maximum
share its gradient. The band scales with the precision: in float64 the derivative equals automatic differentiation to about 10
digits. The forward results are exact in both precisions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from anomaly.nn._gradient_rules import FUNCTIONS, MODULES, Pullback, Rule, module_rule, unsupported


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in MODULES or super().is_leaf_module(m, module_qualified_name)


class _Step(NamedTuple):
    """One operation: its rule, the names of its result and inputs, and its other arguments."""

    result: str
    rule: Rule
    inputs: list[str]
    constants: tuple[Any, ...]
    options: dict[str, Any]


class InputGradient:
    """Frozen network in eval mode that returns its result and the pullback of the result.

    It is not a module: state and device belong to the network.

    Args:
        network: network from (N, 3, h, w) to a map or a list of maps; the last map is the result.
        size: height and width of a test input.

    Raises:
        UsageError: an operation is not supported.
    """

    def __init__(self, network: nn.Module, *, size: tuple[int, int]) -> None:
        modules = dict(network.named_modules())
        try:
            graph = _Tracer().trace(network)
        except (fx.proxy.TraceError, TypeError) as error:
            raise unsupported(f"the control flow ({error})") from error
        self._steps: list[_Step] = []
        for node in graph.nodes:
            if node.op == "placeholder":
                self._input = node.name
            elif node.op == "output":
                (result,) = node.args
                self._result = (result[-1] if isinstance(result, (list, tuple)) else result).name
            elif node.op == "call_module":
                module = modules[node.target]
                self._steps.append(_Step(node.name, module_rule(module), [node.args[0].name], (module,), {}))
            elif node.op in ("call_function", "call_method") and node.target in FUNCTIONS:
                inside = [part for a in node.args for part in (a if isinstance(a, list) else [a])]
                named = [part.name for part in inside if isinstance(part, fx.Node)]
                constants = tuple(a for a in node.args if not isinstance(a, (fx.Node, list)))
                self._steps.append(_Step(node.name, FUNCTIONS[node.target], named, constants, dict(node.kwargs)))
            else:
                raise unsupported(f"the operation {getattr(node.target, '__name__', node.target)!r}")
        with torch.no_grad():
            result, pullback = self(torch.zeros(1, 3, *size))
            pullback(result)

    def __call__(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Run the network.

        Args:
            x: (N, 3, h, w) float.

        Returns:
            The result (N, C, h', w') and its pullback: from the derivative by the result to the derivative by x.
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
                    continue  # a level that does not affect the result
                for name, share in zip(step.inputs, back(gradients.pop(step.result)), strict=True):
                    gradients[name] = gradients[name] + share if name in gradients else share
            return gradients[self._input]

        return values[self._result], pullback
