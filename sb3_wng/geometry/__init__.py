"""Pure mathematics on tensors: laws, metrics and solves; knows neither reinforcement learning nor its own callers."""

from sb3_wng.geometry.expectations import ExpectationGradient, Pathwise, ScoreFunction, vector_jacobian_products
from sb3_wng.geometry.kernels import GaussianKernel, random_points, stratified_coordinates
from sb3_wng.geometry.laws import ActionLaw, CategoricalLaw, GaussianLaw, graph_laplacian_solve
from sb3_wng.geometry.metrics import (
    BehaviorSample,
    EuclideanMetric,
    FactoredMetric,
    GaussNewtonMetric,
    Metric,
    SumMetric,
    wasserstein_factor,
)
from sb3_wng.geometry.solve import Solution, conjugate_gradient, damped_solve
from sb3_wng.geometry.transport import DualFit, DualPotentials, sinkhorn_distance, total_variation
from sb3_wng.geometry.transport_field import transport_field

__all__ = [
    "ActionLaw",
    "BehaviorSample",
    "CategoricalLaw",
    "DualFit",
    "DualPotentials",
    "EuclideanMetric",
    "ExpectationGradient",
    "FactoredMetric",
    "GaussNewtonMetric",
    "GaussianKernel",
    "GaussianLaw",
    "Metric",
    "Pathwise",
    "ScoreFunction",
    "Solution",
    "SumMetric",
    "conjugate_gradient",
    "damped_solve",
    "graph_laplacian_solve",
    "random_points",
    "sinkhorn_distance",
    "stratified_coordinates",
    "total_variation",
    "transport_field",
    "vector_jacobian_products",
    "wasserstein_factor",
]
