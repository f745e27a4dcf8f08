"""Checks of the evolution strategies' arguments, before any training time is spent."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_wng.algorithms.arguments import check_choice, check_integers, check_log_bandwidth, is_finite_number
from sb3_wng.algorithms.evolution_policies import EvolutionPolicy
from sb3_wng.algorithms.search_direction import FITNESS_SHAPINGS
from sb3_wng.algorithms.worker_environments import environment_maker
from sb3_wng.behavior import make_embedding
from sb3_wng.behavior.bonuses import DISTANCES

if TYPE_CHECKING:
    from sb3_wng.algorithms.evolution import EvolutionStrategy

COMMON_RANDOM_NUMBERS = ("pair", "iteration", "none")
BACKENDS = ("loky", "ray")
# What a strategy may have beside its policy, and the argument that says whether it has
SLOTS = dict(
    kernel_metric="natural_coef", wasserstein_bonus="wasserstein_coef", novelty_bonus="novelty_weight", parents="n_parents"
)


def check_evolution_arguments(model: EvolutionStrategy) -> None:
    """:raises ValueError: naming the argument and what it may be"""
    if not issubclass(model.policy_class, EvolutionPolicy):
        raise ValueError(
            f"policy: {model.policy_class.__name__} has a critic or more than candidates are made of; use one of "
            f"{', '.join(map(repr, model.policy_aliases))} or a subclass of EvolutionPolicy"
        )
    known = inspect.signature(model.policy_class).parameters
    unknown = [name for name in model.policy_kwargs if name not in known]
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        settings = ", ".join(list(known)[3:])  # the first are the spaces and the schedule
        raise ValueError(f"policy_kwargs: {model.policy_class.__name__} has no {', '.join(unknown)}; it has {settings}")
    check_integers(model, n_delta=1, n_episodes=1, n_basis=1, n_previous=1, n_neighbors=1, n_parents=1)
    check_choice("fitness_shaping", model.fitness_shaping, FITNESS_SHAPINGS)
    check_choice("distance", model.distance, DISTANCES)
    check_choice("common_random_numbers", model.common_random_numbers, COMMON_RANDOM_NUMBERS)
    check_choice("backend", model.backend, BACKENDS)
    check_log_bandwidth(model.log_bandwidth)
    for name in ("natural_coef", "wasserstein_coef"):
        value = getattr(model, name)
        if not (is_finite_number(value) or (callable(value) and name == "wasserstein_coef")):
            raise ValueError(f"{name} must be a finite number, got {value!r}")
    if model.natural_coef > 1:
        raise ValueError(f"natural_coef must be <= 1, or directions may descend, got {model.natural_coef}")
    if not (is_finite_number(model.novelty_weight) and 0 <= model.novelty_weight <= 1):
        raise ValueError(f"novelty_weight must be in [0, 1], got {model.novelty_weight!r}")
    for name, alternative, is_alternative in (
        ("delta_std", " or a schedule", callable(model.delta_std)),
        ("damping", "", False),
        ("max_grad_norm", " or None", model.max_grad_norm is None),
        ("saturation", " or None", model.saturation is None),
        ("episode_timeout", " or None", model.episode_timeout is None),
    ):
        value = getattr(model, name)
        if not (is_alternative or (is_finite_number(value) and value > 0)):
            raise ValueError(f"{name} must be a finite number > 0{alternative}, got {value!r}")
    if not (is_finite_number(model.weight_decay) and model.weight_decay >= 0):
        raise ValueError(f"weight_decay must be a finite number >= 0, got {model.weight_decay!r}")
    if not (model.env_failure == "raise" or is_finite_number(model.env_failure)):
        raise ValueError(f"env_failure must be 'raise' or the finite return of a failed episode, got {model.env_failure!r}")
    if not (isinstance(model.n_jobs, (int, np.integer)) and (model.n_jobs == -1 or model.n_jobs >= 1)):
        raise ValueError(f"n_jobs must be an integer >= 1, or -1 for one process per core, got {model.n_jobs!r}")
    if model.n_parents > 1 and model.novelty_weight == 0:
        raise ValueError("n_parents > 1 needs novelty_weight > 0: parents are chosen by their novelty")
    if model.uses_embedding:
        make_embedding(model.embedding)
    if model.embedding_horizon is not None:
        check_integers(model, embedding_horizon=1)
    if model.natural_coef != 0 and 2 * model.n_basis > model.n_delta:
        warnings.warn(
            f"n_basis={model.n_basis} functions are more than half of the n_delta={model.n_delta} directions that "
            "an iteration sees: the metric will be noise. Lower n_basis or raise n_delta",
            stacklevel=5,
        )
    if model.n_jobs == 1 and model.backend == "loky" and model.episode_timeout is not None:
        warnings.warn("episode_timeout has no effect with n_jobs=1: only a worker process can be killed", stacklevel=5)
    if model.backend != "ray" and model.ray_address is not None:
        warnings.warn("ray_address has no effect with backend='loky': pass backend='ray'", stacklevel=5)
    check_normalization(model)
    if model.env is not None and (model.n_jobs != 1 or model.backend != "loky"):
        environment_maker(model.env)


def check_normalization(model: EvolutionStrategy) -> None:
    """:raises ValueError: for a VecNormalize that another normalisation, or failed episodes, would meet"""
    if model.get_vec_normalize_env() is None:
        return
    if model.policy_kwargs.get("normalize_observations", model.normalize_observations):
        raise ValueError("normalize_observations: the environment's VecNormalize does it already; use one of the two")
    if model.env_failure != "raise":
        raise ValueError(
            "env_failure: VecNormalize keeps what a failed episode has returned in its statistics, which may end up as NaN; "
            "use normalize_observations=True in its place, or env_failure='raise'"
        )


def check_saved_slots(
    given: Mapping[str, Any], own: Collection[str], policy_state: Mapping[str, Any], exact_match: bool
) -> None:
    """:raises ValueError: for a file of a strategy with other slots filled, naming the argument that fills them

    :param given: the file's modules
    :param own: names of the strategy's
    :param policy_state: of its policy
    """
    for slot, argument in SLOTS.items():
        if slot in given and slot not in own:
            raise ValueError(f"{argument} was in use when the model was saved, and cannot be switched off")
        if slot in own and slot not in given and exact_match:
            raise ValueError(f"{argument} was not in use when the model was saved, and cannot be switched on")
    was_normalized, is_normalized = (
        any(name.startswith("normalizer.") for name in state) for state in (given.get("policy", policy_state), policy_state)
    )
    if exact_match and was_normalized != is_normalized:
        raise ValueError("normalize_observations must be what it was when the model was saved")
