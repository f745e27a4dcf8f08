"""Checks of the evolution strategies' arguments, before any training time is spent."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_wng.algorithms.arguments import check_choice, check_integers, is_finite_number
from sb3_wng.algorithms.evolution_policies import EvolutionPolicy
from sb3_wng.algorithms.search_direction import FITNESS_SHAPINGS
from sb3_wng.behavior import ActionSequence, BehaviorEmbedding, RewardToGo, make_embedding
from sb3_wng.behavior.bonuses import DISTANCES

if TYPE_CHECKING:
    from sb3_wng.algorithms.evolution import EvolutionStrategy

COMMON_RANDOM_NUMBERS = ("pair", "iteration", "none")
BACKENDS = ("loky", "ray")


def check_evolution_arguments(model: EvolutionStrategy) -> None:
    """:raises ValueError: naming the argument and what it may be"""
    if not issubclass(model.policy_class, EvolutionPolicy):
        raise ValueError(
            f"policy: {model.policy_class.__name__} has a critic or more than candidates are made of; use one of "
            f"{', '.join(map(repr, model.policy_aliases))} or a subclass of EvolutionPolicy"
        )
    check_integers(model, n_delta=1, n_episodes=1, n_basis=1, n_previous=1, n_neighbors=1, n_parents=1)
    check_choice("fitness_shaping", model.fitness_shaping, FITNESS_SHAPINGS)
    check_choice("distance", model.distance, DISTANCES)
    check_choice("common_random_numbers", model.common_random_numbers, COMMON_RANDOM_NUMBERS)
    check_choice("backend", model.backend, BACKENDS)
    for name in ("natural_coef", "wasserstein_coef", "log_bandwidth"):
        value = getattr(model, name)
        if not (is_finite_number(value) or (callable(value) and name == "wasserstein_coef")):
            raise ValueError(f"{name} must be a finite number, got {value!r}")
    if model.natural_coef > 1:
        raise ValueError(f"natural_coef must be <= 1, or directions may descend, got {model.natural_coef}")
    if not (is_finite_number(model.novelty_weight) and 0 <= model.novelty_weight <= 1):
        raise ValueError(f"novelty_weight must be in [0, 1], got {model.novelty_weight!r}")
    positive = {"damping": model.damping, "max_grad_norm": model.max_grad_norm, "delta_std": model.delta_std}
    for name, value in {**positive, "episode_timeout": model.episode_timeout, "saturation": model.saturation}.items():
        if not (value is None or callable(value) or (is_finite_number(value) and value > 0)):
            raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
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
    if model.get_vec_normalize_env() is not None and model.normalize_observations:
        raise ValueError("normalize_observations: the environment's VecNormalize does it already; use one of the two")


def default_horizon(embedding: BehaviorEmbedding, env: VecEnv) -> int | None:
    """Steps that an embedding gets where the user did not say: all that the environment's time limit allows.

    :raises ValueError: for an embedding with a number per step of environments without a limit
    """
    limit = _time_limit(env)
    if limit is None and isinstance(embedding, ActionSequence | RewardToGo):
        raise ValueError(
            f"embedding_horizon: {type(embedding).__name__} needs the number of steps per episode, and the environment has no "
            "time limit to take it from"
        )
    return limit


def _time_limit(env: VecEnv) -> int | None:
    """Steps after which an episode is truncated, as the spec, a batched task, or the ``TimeLimit`` wrapper has it."""
    for name in ("spec", "max_episode_steps", "_max_episode_steps"):
        try:
            value = env.get_attr(name, indices=[0])[0]
        except AttributeError:
            continue
        limit = getattr(value, "max_episode_steps", None) if name == "spec" else value
        if limit is not None:
            return int(limit)
    return None
