"""What remembers something between steps: damping, step rules and the preconditioner; works with any torch module."""

from sb3_wng.optim.damping import Damping, LevenbergMarquardtDamping
from sb3_wng.optim.kernel_metric import KernelWassersteinMetric
from sb3_wng.optim.natural_gradient import NaturalGradient, StepReport
from sb3_wng.optim.steps import (
    FixedRate,
    OptimizerStep,
    Step,
    StepRule,
    Trial,
    TrustRegion,
    assign_gradient,
    assign_parameters,
    hold_parameters,
)

__all__ = [
    "Damping",
    "FixedRate",
    "KernelWassersteinMetric",
    "LevenbergMarquardtDamping",
    "NaturalGradient",
    "OptimizerStep",
    "Step",
    "StepReport",
    "StepRule",
    "Trial",
    "TrustRegion",
    "assign_gradient",
    "assign_parameters",
    "hold_parameters",
]
