"""Step rules: how far to go along a preconditioned gradient, and when to take a step back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector


class Trial(NamedTuple):
    """What was measured at a point of parameter space; all but the objective relative to where the data came from."""

    objective: float  # to be ascended
    distance: float = 0.0  # squared length of the move as the metric counts it, measured instead of predicted
    divergence: float = 0.0  # KL divergence, for rules with a cap on it


Evaluate = Callable[[], Trial]


class Step(NamedTuple):
    """What a rule did."""

    accepted: bool
    scale: float  # multiple of the direction that was taken; 0 if refused
    trial: Trial | None  # measured after the step; None where nothing had to be measured


REFUSED = Step(False, 0.0, None)
ROUNDING = 1e-4  # relative, of measured distances in float32


class StepRule(Protocol):
    """Moves the parameters along a direction, or leaves them exactly as they were."""

    def __call__(
        self,
        parameters: Sequence[nn.Parameter],
        direction: Tensor,
        curvature: float,
        objective: float,
        evaluate: Evaluate,
    ) -> Step:
        """Take one step.

        :param parameters: changed in place
        :param direction: ascent direction d, shape (p,)
        :param curvature: d^T G d >= 0, undamped
        :param objective: value at the current parameters
        :param evaluate: measures at the parameters' values of the moment
        """


@dataclass(frozen=True)
class TrustRegion:
    """The longest step whose squared length is ``radius``, shortened until it holds what it promises.

    The full step has ``scale = sqrt(radius / d^T G d)``. It is accepted as soon as the objective has improved, the
    *measured* distance is within the radius (but for rounding) and the divergence within its cap.

    :param radius: largest squared length of a step; 0, where schedules end, refuses it. For KL, whose expansion is
        u^T F u / 2, twice the KL.
    :param max_distance: largest measured distance, where it may exceed one step's radius because several steps share a
        region; ``radius`` if ``None``
    :param max_divergence: cap on the measured divergence
    :param shrinking_factor: factor in (0, 1) between successive trials
    :param max_iter: number of trials; 0 takes the full step unseen

    Reference: Schulman et al. 2015 (TRPO), appendix C.
    """

    radius: float
    max_distance: float | None = None
    max_divergence: float = math.inf
    shrinking_factor: float = 0.8
    max_iter: int = 10

    def __post_init__(self) -> None:
        _check_schedulable(radius=self.radius, max_divergence=self.max_divergence)
        _check_backtracking(self.shrinking_factor, self.max_iter)

    def __call__(
        self,
        parameters: Sequence[nn.Parameter],
        direction: Tensor,
        curvature: float,
        objective: float,
        evaluate: Evaluate,
    ) -> Step:
        if not curvature > 0 or self.radius == 0:  # the metric sees no change, or may see none
            return REFUSED

        max_distance = self.radius if self.max_distance is None else self.max_distance

        def accept(trial: Trial) -> bool:
            # where the metric is exact, rounding would otherwise decide whether the full step is inside
            is_inside = trial.distance <= (1 + ROUNDING) * max_distance and trial.divergence <= self.max_divergence
            return is_inside and trial.objective > objective

        scale = math.sqrt(self.radius / curvature)
        return _backtrack(parameters, direction, scale, evaluate, accept, self.shrinking_factor, self.max_iter)


@dataclass(frozen=True)
class FixedRate:
    """A fixed multiple of the direction, shortened only where it would exceed a cap on the divergence.

    The rule of the papers' Fig. 1. Gradients must be in raw units: where the objective is rescaled to unit variance,
    a Wasserstein step grows as 1/spread and diverges.

    :param rate: multiple of the direction, > 0
    :param max_divergence: cap on the measured divergence
    :param shrinking_factor: factor in (0, 1) between successive trials
    :param max_iter: number of trials before the step is given up
    """

    rate: float
    max_divergence: float = math.inf
    shrinking_factor: float = 0.5
    max_iter: int = 20

    def __post_init__(self) -> None:
        _check_schedulable(rate=self.rate, max_divergence=self.max_divergence)
        _check_backtracking(self.shrinking_factor, self.max_iter)

    def __call__(
        self,
        parameters: Sequence[nn.Parameter],
        direction: Tensor,
        curvature: float,
        objective: float,
        evaluate: Evaluate,
    ) -> Step:
        if math.isinf(self.max_divergence):
            return _backtrack(parameters, direction, self.rate, evaluate, lambda _: True, self.shrinking_factor, 0)

        def accept(trial: Trial) -> bool:
            return trial.divergence <= self.max_divergence

        return _backtrack(parameters, direction, self.rate, evaluate, accept, self.shrinking_factor, self.max_iter)


@dataclass(frozen=True)
class OptimizerStep:
    """Hands the direction to a torch optimiser as if it were the gradient (the published WNPG: Adam).

    :param optimizer: holds the parameters; those outside the step are left without a gradient
    :param max_grad_norm: longer directions are rescaled to it before they are handed over
    """

    optimizer: torch.optim.Optimizer
    max_grad_norm: float = math.inf

    def __call__(
        self,
        parameters: Sequence[nn.Parameter],
        direction: Tensor,
        curvature: float,
        objective: float,
        evaluate: Evaluate,
    ) -> Step:
        norm = direction.norm().item()
        scale = min(1.0, self.max_grad_norm / norm) if norm > 0 else 1.0
        self.optimizer.zero_grad()
        assign_gradient(parameters, -scale * direction)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return Step(True, scale, None)


def hold_parameters(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Let an optimiser hold a module's parameters of the moment if some that it holds are no longer among them.

    :raises ValueError: if it has several groups of parameters, as new ones could belong to any
    """
    wanted = list(parameters)
    identities = {id(parameter) for parameter in wanted}
    if all(id(parameter) in identities for group in optimizer.param_groups for parameter in group["params"]):
        return
    if len(optimizer.param_groups) > 1:
        raise ValueError("layers were replaced, and the optimizer has several groups of parameters: make a new optimizer, too")
    optimizer.param_groups[0]["params"] = wanted
    for parameter in [parameter for parameter in optimizer.state if id(parameter) not in identities]:
        del optimizer.state[parameter]


def assign_gradient(parameters: Sequence[nn.Parameter], flat: Tensor) -> None:
    """Write a flat vector (p,) into the parameters' ``.grad``."""
    for parameter, part in zip(parameters, flat.split([q.numel() for q in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def assign_parameters(parameters: Sequence[nn.Parameter], flat: Tensor) -> None:
    """Write a flat vector (p,) into the parameters, in place; autograd refuses graphs that this outdates."""
    with torch.no_grad():
        for parameter, part in zip(parameters, flat.split([q.numel() for q in parameters]), strict=True):
            parameter.copy_(part.view_as(parameter))


def _backtrack(
    parameters: Sequence[nn.Parameter],
    direction: Tensor,
    scale: float,
    evaluate: Evaluate,
    accept: Callable[[Trial], bool],
    shrinking_factor: float,
    max_iter: int,
) -> Step:
    """Try ``scale``, ``scale * shrinking_factor``, ...; restore the parameters when ``max_iter`` trials fail."""
    start = parameters_to_vector(parameters).detach()
    if max_iter == 0:
        assign_parameters(parameters, start + scale * direction)
        return Step(True, scale, None)
    step = REFUSED
    try:
        for _ in range(max_iter):
            assign_parameters(parameters, start + scale * direction)
            trial = _measured(evaluate)
            if math.isfinite(trial.objective) and accept(trial):
                step = Step(True, scale, trial)
                break
            scale *= shrinking_factor
    finally:  # Ctrl-C, too: nobody shall save a trial
        if not step.accepted:
            assign_parameters(parameters, start)
    return step


def _measured(evaluate: Evaluate) -> Trial:
    """Not a number where a step is so long that torch's distributions refuse what it leads to."""
    try:
        return evaluate()
    except ValueError:
        return Trial(math.nan)


def _check_schedulable(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:  # schedules end at 0
            raise ValueError(f"{name} must be >= 0, got {value}")


def _check_backtracking(shrinking_factor: float, max_iter: int) -> None:
    if not 0 < shrinking_factor < 1:
        raise ValueError(f"shrinking_factor must be in (0, 1), got {shrinking_factor}")
    if max_iter < 0:
        raise ValueError(f"max_iter must be >= 0, got {max_iter}")
