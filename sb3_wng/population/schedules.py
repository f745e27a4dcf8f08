"""Temperatures and coefficients that change during training: functions of the remaining progress, as SB3's schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass


def _check(**temperatures: float) -> None:
    for name, value in temperatures.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number > 0, got {value}")


@dataclass(frozen=True)
class AnnealedTemperature:
    """From ``initial`` to ``final``, by the same factor in every interval: explore first, exploit last.

    :param initial: at the start, usually 10 to 100
    :param final: at the end of training, usually 0.1 to 10
    :raises ValueError: for a temperature that is not > 0
    """

    initial: float = 100.0
    final: float = 1.0

    def __post_init__(self) -> None:
        _check(initial=self.initial, final=self.final)

    def __call__(self, progress_remaining: float) -> float:
        return float(self.final * (self.initial / self.final) ** progress_remaining)


@dataclass(frozen=True)
class CyclicalTemperature:
    """Falls from ``maximum`` to ``temperature`` in every cycle, then jumps back, so that particles leave modes again.

    The return's weight 1/temperature grows as ``position ** power`` with the position in the cycle.

    :param temperature: at the end of each cycle
    :param maximum: at the start of each cycle
    :param n_cycles: number of cycles, usually 3 to 10
    :param power: shape of the rise; large: a long exploration and a short exploitation
    :raises ValueError: for temperatures or powers that are not > 0, and fewer than one cycle

    Reference: D'Angelo & Fortuin (2021), Annealed Stein variational gradient descent, section 3.
    """

    temperature: float = 10.0
    maximum: float = 1000.0
    n_cycles: int = 4
    power: float = 1.0

    def __post_init__(self) -> None:
        _check(temperature=self.temperature, maximum=self.maximum, power=self.power)
        if self.n_cycles < 1:
            raise ValueError(f"n_cycles must be >= 1, got {self.n_cycles}")

    def __call__(self, progress_remaining: float) -> float:
        done = min(max(1 - progress_remaining, 0.0), 1.0) * self.n_cycles
        position = 1.0 if done == self.n_cycles else done % 1
        weight = position**self.power
        return 1 / ((1 - weight) / self.maximum + weight / self.temperature)


@dataclass(frozen=True)
class AnnealedCoefficient:
    """From ``initial`` to ``final``, by the same factor in every interval, over a fraction of training; then constant.

    Strong repulsion parts policies, weak repulsion lets them reach the goals that it would keep them from.

    :param initial: at the start, usually -0.3 to -2
    :param final: usually -0.03 to -0.3; of the same sign
    :param fraction: of training after which ``final`` is reached
    :raises ValueError: for coefficients of different signs or 0, and a fraction outside (0, 1]
    """

    initial: float = -1.0
    final: float = -0.1
    fraction: float = 0.5

    def __post_init__(self) -> None:
        ends = (self.initial, self.final)
        if not all(math.isfinite(value) for value in ends) or not self.initial * self.final > 0:
            raise ValueError(f"initial and final must be finite, not 0 and of the same sign, got {self.initial}, {self.final}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {self.fraction}")

    def __call__(self, progress_remaining: float) -> float:
        done = min(max(1 - progress_remaining, 0.0) / self.fraction, 1.0)
        return float(self.initial * (self.final / self.initial) ** done)
