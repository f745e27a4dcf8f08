"""Checks of a population's arguments, before any training time is spent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stable_baselines3.common.type_aliases import Schedule

from sb3_wng.algorithms.arguments import check_choice, check_integers, is_finite_number
from sb3_wng.behavior import make_embedding
from sb3_wng.geometry import BANDWIDTH_RULES
from sb3_wng.population.directions import KERNELS, MODES

if TYPE_CHECKING:
    from sb3_wng.population.svpg import SVPG

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


def check_population_arguments(model: SVPG) -> None:
    """:raises ValueError: naming the argument and what it may be"""
    check_integers(model, n_particles=1, n_envs_per_particle=1, n_steps=1, selection_interval=0, embedding_horizon=1)
    check_choice("mode", model.mode, MODES)
    check_choice("kernel", model.kernel, KERNELS)
    check_temperature(model.temperature)
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
    check_algorithm_kwargs(model)


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


def check_algorithm_kwargs(model: SVPG) -> None:
    """:raises ValueError: for arguments that belong to the population, or have no meaning in it"""
    given = [name for name in OF_THE_POPULATION if name in model.algorithm_kwargs]
    if given:
        raise ValueError(f"algorithm_kwargs: pass {', '.join(given)} to SVPG itself, the particles share it")
    if model.algorithm_kwargs.get("n_policy_updates", 1) != 1 or model.algorithm_kwargs.get("policy_batch_size") is not None:
        raise ValueError(
            "algorithm_kwargs: n_policy_updates must be 1 and policy_batch_size None: the particles take one step from each "
            "rollout, together"
        )
    if model.algorithm_kwargs.get("wasserstein_coef", 0) != 0 or model.algorithm_kwargs.get("n_penalized_epochs", 0) != 0:
        raise ValueError("algorithm_kwargs: particles have no penalty; kernel='behavior' keeps their behaviour apart")
