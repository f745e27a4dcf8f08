"""Checks of a population's arguments, before any training time is spent."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.type_aliases import Schedule

from sb3_wng.algorithms.arguments import check_choice, check_integers, check_positive, is_finite_number
from sb3_wng.behavior import make_embedding
from sb3_wng.geometry import BANDWIDTH_RULES
from sb3_wng.population.directions import KERNELS, MODES

if TYPE_CHECKING:
    from sb3_wng.population.population import Population
    from sb3_wng.population.svpg import SVPG
    from sb3_wng.population.wasserstein import WassersteinPopulation

# Arguments that the population and its particles share, or that would change what a particle's step means
OF_THE_POPULATION = (
    "n_steps",
    "gamma",
    "gae_lambda",
    "normalize_advantage",
    "use_sde",
    "sde_sample_freq",
    "policy_kwargs",
    "seed",
    "device",
    "verbose",
    "stats_window_size",
    "tensorboard_log",
    "rollout_buffer_class",
    "rollout_buffer_kwargs",
)


OF_ADAM = ("learning_rate", "batch_size", "n_critic_updates")  # what particles have that take no natural step


def check_saved_size(model: Population) -> None:
    """Note a new population's size for its file.

    :raises ValueError: in ``load()``, for another size
    """
    model.saved_size = model.saved_size or model.population_size
    if model.saved_size != model.population_size:
        name = model.size_arguments[0]
        raise ValueError(f"{name}: this file has {model.saved_size}, got {model.population_size}: leave {name} out to go on")


def check_population_arguments(model: SVPG) -> None:
    """:raises ValueError: naming the argument and what it may be"""
    check_integers(model, n_particles=1, n_envs_per_particle=1, n_steps=1, selection_interval=0, embedding_horizon=1)
    check_choice("mode", model.mode, MODES)
    check_choice("kernel", model.kernel, KERNELS)
    check_temperature(model.temperature)
    check_positive(model, "initial_scale")
    if model.prior_std is not None and not (is_finite_number(model.prior_std) and model.prior_std > 0):
        raise ValueError(f"prior_std must be a finite number > 0, or None for a flat prior, got {model.prior_std!r}")
    for name in ("behavior_coef", "selection_noise"):
        value = getattr(model, name)
        if not (is_finite_number(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")
    is_number = is_finite_number(model.bandwidth) and float(model.bandwidth) > 0
    if not is_number and model.bandwidth not in BANDWIDTH_RULES:
        rules = ", ".join(map(repr, BANDWIDTH_RULES))
        raise ValueError(f"bandwidth must be a number > 0 or one of {rules}, got {model.bandwidth!r}")
    make_embedding(model.embedding)
    if model.kernel == "behavior" and model.mode != "svpg":
        raise ValueError(
            f"kernel='behavior' is for mode='svpg'; mode={model.mode!r} has no kernel or takes the parameters' apart"
        )
    if model.selection_interval and (model.mode == "joint" or model.n_particles < 4):
        raise ValueError(
            "selection_interval replaces a quarter of the particles: it needs n_particles >= 4, and not mode='joint'"
        )
    check_algorithm_kwargs(model, "kernel='behavior' keeps their behaviour apart")


def check_temperature(temperature: float | Schedule) -> None:
    """:raises ValueError: for a temperature that is not > 0 at the start, in the middle and at the end of training"""
    if not callable(temperature):
        if not (is_finite_number(temperature) and temperature > 0):
            raise ValueError(f"temperature must be a finite number > 0, or a schedule of them, got {temperature!r}")
        return
    for remaining in (1.0, 0.5, 0.0):
        value = temperature(remaining)
        if not (is_finite_number(value) and value > 0):
            raise ValueError(f"temperature must stay > 0; its schedule gives {value!r} at a remaining progress of {remaining}")


def check_algorithm_kwargs(model: Population, instead: str) -> None:
    """:raises ValueError: for arguments that belong to the population, or have no meaning in it

    :param instead: what to do where a penalty is wanted
    """
    given = [name for name in OF_THE_POPULATION if name in model.algorithm_kwargs]
    if given:
        raise ValueError(f"algorithm_kwargs: pass {', '.join(given)} to {type(model).__name__} itself, the particles share it")
    known = OF_ADAM if model.kind.has_critic else ()
    unread = [name for name in model.algorithm_kwargs if name not in known]
    if unread and not model.kind.is_natural:
        read = f"particles only have {', '.join(known)} (of their critics)" if known else "particles have no critics"
        raise ValueError(
            f"algorithm_kwargs: {', '.join(unread)} would have no effect: with algorithm={model.algorithm!r} Adam takes all "
            f"steps, and {read}"
        )
    if model.algorithm_kwargs.get("n_policy_updates", 1) != 1 or model.algorithm_kwargs.get("policy_batch_size") is not None:
        raise ValueError(
            "algorithm_kwargs: n_policy_updates must be 1 and policy_batch_size None: the particles take one step from each "
            "rollout, together"
        )
    if model.algorithm_kwargs.get("wasserstein_coef", 0) != 0 or model.algorithm_kwargs.get("n_penalized_epochs", 0) != 0:
        raise ValueError(f"algorithm_kwargs: particles have no penalty of their own; {instead}")


def check_wasserstein_arguments(model: WassersteinPopulation) -> None:
    """:raises ValueError: naming the argument and what it may be"""
    check_integers(model, n_steps=1, embedding_horizon=1)
    check_choice("distance", model.distance, ("sinkhorn", "dual"))
    check_choice("cost", model.cost, ("euclidean", "sqeuclidean"))
    check_positive(model, "entropic_reg")
    make_embedding(model.embedding)
    for remaining in (1.0, 0.5, 0.0):
        coefficient_matrix(model.wasserstein_coef, remaining, model.n_policies)
        reference_coefficient(model.reference_coef, remaining)
    if model.n_policies == 1 and model.reference is None and model.env is not None:
        raise ValueError("n_policies=1 has nothing to be compared with: pass reference=, or n_policies >= 2")
    check_algorithm_kwargs(model, "wasserstein_coef is an argument of the population")


Coefficient = float | NDArray[np.floating] | Callable[[float], Any]


def coefficient_matrix(coefficient: Coefficient, progress_remaining: float, n: int) -> NDArray[np.float64]:
    """Coefficients between n policies, shape (n, n), the diagonal zero.

    :raises ValueError: for what is neither a finite number nor a matrix of that shape
    """
    given = coefficient(progress_remaining) if callable(coefficient) else coefficient
    try:
        values = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.array(np.nan)
    if values.shape not in ((), (n, n)) or not np.isfinite(values).all():
        raise ValueError(
            f"wasserstein_coef must be a finite number, a matrix of shape ({n}, {n}), or a schedule of one of them "
            f"(> 0 attracts, < 0 repels), got {given!r}"
        )
    matrix = np.broadcast_to(values, (n, n)).copy()
    np.fill_diagonal(matrix, 0.0)
    return matrix


def reference_coefficient(coefficient: float | Schedule, progress_remaining: float) -> float:
    """:raises ValueError: for what is no finite number"""
    value = coefficient(progress_remaining) if callable(coefficient) else coefficient
    if not is_finite_number(value):
        raise ValueError(
            f"reference_coef must be a finite number or a schedule of them (> 0 attracts, < 0 repels), got {value!r}"
        )
    return float(value)
