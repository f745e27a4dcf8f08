"""Pure mathematics on tensors: laws, metrics and solves; knows neither reinforcement learning nor its own callers."""

from sb3_wng.geometry.dual_potentials import DualFit, DualPotentials
from sb3_wng.geometry.expectations import ExpectationGradient, Pathwise, Perturbation, ScoreFunction, vector_jacobian_products
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
from sb3_wng.geometry.stein import (
    BANDWIDTH_RULES,
    kernel_repulsion,
    median_bandwidth,
    particle_kernel,
    radial_push,
    squared_distances,
    svgd_direction,
)
from sb3_wng.geometry.stochastic_duals import AlternatingDual, KernelDual, SemiDiscreteDual, SinkhornDual
from sb3_wng.geometry.transport import sinkhorn_distance, sinkhorn_potential, total_variation
from sb3_wng.geometry.transport_field import transport_field

__all__ = [
    "BANDWIDTH_RULES",
    "ActionLaw",
    "AlternatingDual",
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
    "KernelDual",
    "Metric",
    "Pathwise",
    "Perturbation",
    "ScoreFunction",
    "SemiDiscreteDual",
    "SinkhornDual",
    "Solution",
    "SumMetric",
    "conjugate_gradient",
    "damped_solve",
    "graph_laplacian_solve",
    "kernel_repulsion",
    "median_bandwidth",
    "particle_kernel",
    "radial_push",
    "random_points",
    "sinkhorn_distance",
    "sinkhorn_potential",
    "squared_distances",
    "stratified_coordinates",
    "svgd_direction",
    "total_variation",
    "transport_field",
    "vector_jacobian_products",
    "wasserstein_factor",
]
