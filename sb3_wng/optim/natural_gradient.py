"""The preconditioner: from a gradient and a metric to a step that is safe to take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from sb3_wng.geometry import Metric
from sb3_wng.optim.damping import Damping
from sb3_wng.optim.steps import Evaluate, OptimizerStep, Step, StepRule, Trial


class StepReport(NamedTuple):
    """What one call of :meth:`NaturalGradient.step` did, for logs."""

    accepted: bool
    scale: float  # multiple of the direction taken
    trial: Trial | None  # measured after the step, where the step rule or the damping needed it
    reduction_ratio: float | None  # actual over predicted gain, where the gain was measured


class NaturalGradient(nn.Module):
    """Natural-gradient ascent for the parameters of any torch module.

    Each step solves ``(G + damping I) d = g``, guards the direction, lets the step rule move the parameters, and
    teaches the damping what came of it. A direction that does not ascend falls back to the gradient; non-finite
    numbers skip the step, leave the parameters untouched and are counted in :attr:`n_skipped`.

    It is a module so that its state (damping, counters) travels with ``state_dict``.

    :param step_rule: :class:`TrustRegion`, :class:`FixedRate` or :class:`OptimizerStep`
    :param damping: a number (constant) or a :class:`Damping`
    :param curvature_weight: c of the model ``f(theta + u) = f + g.u - (c/2) u^T G u`` that the reduction ratio compares
        with. 1 where G is the objective's own Gauss-Newton curvature (losses); 0 where G is a geometry and says
        nothing about the objective's curvature (policies)

    Supervised use, with the Gauss-Newton metric of a least-squares loss::

        natural = NaturalGradient(FixedRate(1.0), LevenbergMarquardtDamping(1e-3), curvature_weight=1)
        outputs = model(x)
        loss = 0.5 * (outputs - y).square().sum(dim=1).mean()
        gradient = -parameters_to_vector(torch.autograd.grad(loss, parameters, retain_graph=True))
        metric = GaussNewtonMetric(outputs, parameters, block=lambda tangent: tangent)
        natural.step(parameters, gradient, metric, objective=-loss.item(), evaluate=lambda: Trial(-loss_at().item()))
    """

    n_skipped: Tensor
    n_fallbacks: Tensor

    def __init__(self, step_rule: StepRule, damping: Damping | float = 0.1, curvature_weight: float = 0.0) -> None:
        super().__init__()
        self.step_rule = step_rule
        self.curvature_weight = curvature_weight
        self.damping = damping if isinstance(damping, Damping) else Damping(damping)
        self.register_buffer("n_skipped", torch.tensor(0.0))  # floats, as SB3's tools expect of every saved tensor
        self.register_buffer("n_fallbacks", torch.tensor(0.0))

    def direction(self, gradient: Tensor, metric: Metric) -> Tensor:
        """``(G + damping I)^{-1} gradient``; the gradient itself where that does not ascend.

        :param gradient: gradient of what is to be ascended, shape (p,)
        :param metric: G at the current parameters
        """
        direction = metric.solve(gradient, self.damping.value.item())
        # a NaN inner product is not a descent direction but a failure, and is left for the caller to skip
        if direction.dot(gradient) <= 0 and torch.isfinite(direction).all():
            self.n_fallbacks += 1
            return gradient
        return direction

    def step(
        self,
        parameters: Sequence[nn.Parameter],
        gradient: Tensor,
        metric: Metric,
        objective: float,
        evaluate: Evaluate,
        length_metric: Metric | None = None,
    ) -> StepReport:
        """Ascend once.

        :param parameters: changed in place
        :param gradient: of the objective at the current parameters, shape (p,)
        :param metric: G, which shapes the direction
        :param objective: its value at the current parameters
        :param evaluate: measures a :class:`Trial` at the parameters' values of the moment
        :param length_metric: measures the step's length where ``metric`` is too rough for it; ``metric`` if ``None``
        :raises ValueError: for a ``curvature_weight`` where the step's curvature is not G's along the direction
        """
        if self.curvature_weight and (length_metric is not None or isinstance(self.step_rule, OptimizerStep)):
            raise ValueError(
                "curvature_weight must be 0 with a length_metric or an optimizer: their steps have another curvature"
            )
        if not torch.isfinite(gradient).all():
            return self._skip()
        direction = self.direction(gradient, metric)
        curvature = direction.dot((length_metric or metric).product(direction)).item()
        if not (torch.isfinite(direction).all() and math.isfinite(curvature)):
            return self._skip()
        start = parameters_to_vector(parameters).detach()
        step = self.step_rule(parameters, direction, curvature, objective, evaluate)
        if step.trial is None and step.accepted and self.damping.adaptive:
            step = step._replace(trial=evaluate())
        move = parameters_to_vector(parameters).detach() - start
        predicted = gradient.dot(move).item() - 0.5 * self.curvature_weight * step.scale**2 * curvature
        ratio = _reduction_ratio(step, objective, predicted)
        if ratio is not None:
            self.damping.update(ratio)
        return StepReport(step.accepted, step.scale, step.trial, ratio)

    def _skip(self) -> StepReport:
        self.n_skipped += 1
        return StepReport(False, 0.0, None, None)


def _reduction_ratio(step: Step, objective: float, predicted: float) -> float | None:
    """Actual over predicted gain; None where it was not measured, 0 where nothing was gained or predicted."""
    if not step.accepted:
        return 0.0
    if step.trial is None:
        return None
    return (step.trial.objective - objective) / predicted if predicted > 0 else 0.0
