"""How much a metric is damped, and what is learnt from steps that went better or worse than it predicted."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Damping(nn.Module):
    """Constant damping, and the base of adaptive ones.

    :param value: lambda >= 0 in ``(G + lambda I)^{-1} g``, in units of G (usually 1e-3 to 1 times its typical eigenvalue)
    """

    adaptive = False  # whether steps must be measured for its sake
    value: Tensor
    keeps_setting = False  # whether the next state that is loaded leaves the value as it is

    def __init__(self, value: float = 0.1) -> None:
        super().__init__()
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"damping must be a finite number >= 0, got {value}")
        self.register_buffer("value", torch.tensor(float(value), dtype=torch.float64))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A constant is a setting and not a state; so is the first value, where what was saved was constant
        if not self.adaptive or self.keeps_setting or f"{prefix}best_ratio" not in state_dict:
            state_dict.update({f"{prefix}{name}": value for name, value in self.named_buffers()})
        if not self.adaptive:
            for name in ("best_ratio", "n_since"):
                state_dict.pop(f"{prefix}{name}", None)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.keeps_setting = False

    def update(self, reduction_ratio: float) -> None:
        """Called after each step with what it gained relative to the quadratic model's prediction."""


class LevenbergMarquardtDamping(Damping):
    """Damping that falls while the quadratic model predicts well and rises while it does not.

    A reduction ratio below ``low`` (or not finite) divides the damping by ``factor``, one above ``high`` multiplies
    it by ``factor``. Defaults are the papers'.

    :param value: initial damping, > 0
    :param factor: in (0, 1)
    :param low: lower end of the band in which the damping stays, usually 0.25
    :param high: upper end, usually 0.75
    :param minimum: smallest damping
    :param maximum: largest damping
    :param interval: steps between adaptations, which then go by the largest ratio seen in between (papers' code: 5)

    Reference: Nocedal & Wright, Numerical Optimization, Alg. 4.1; Martens 2010, section 4.1.
    """

    adaptive = True
    best_ratio: Tensor
    n_since: Tensor

    def __init__(
        self,
        value: float = 0.1,
        factor: float = 0.85,
        low: float = 0.25,
        high: float = 0.75,
        minimum: float = 1e-10,
        maximum: float = 1e5,
        interval: int = 1,
    ) -> None:
        super().__init__(value)
        if not 0 < minimum <= value <= maximum:
            raise ValueError(f"damping must lie in [minimum, maximum] = [{minimum}, {maximum}], both > 0, got {value}")
        if not 0 < factor < 1 or not low < high:
            raise ValueError(f"factor must be in (0, 1) and low < high, got factor={factor}, low={low}, high={high}")
        self.factor, self.low, self.high = factor, low, high
        if interval < 1:
            raise ValueError(f"interval must be >= 1, got {interval}")
        self.minimum, self.maximum = minimum, maximum
        self.interval = interval
        self.register_buffer("best_ratio", torch.tensor(-math.inf, dtype=torch.float64))
        self.register_buffer("n_since", torch.tensor(0.0))

    def update(self, reduction_ratio: float) -> None:
        if math.isfinite(reduction_ratio):
            self.best_ratio.clamp_(min=reduction_ratio)
        self.n_since += 1
        if self.n_since < self.interval:
            return
        if self.best_ratio < self.low:
            self.value /= self.factor
        elif self.best_ratio > self.high:
            self.value *= self.factor
        self.best_ratio.fill_(-math.inf)
        self.n_since.zero_()
        self.value.clamp_(self.minimum, self.maximum)
