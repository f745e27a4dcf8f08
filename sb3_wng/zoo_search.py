"""What a search for hyperparameters (RL-Zoo's ``-optimize``) samples of each algorithm, and how it becomes arguments."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sb3_wng.population.particles import KINDS

if TYPE_CHECKING:
    import optuna


def _sample_trust_region(trial: optuna.Trial, radius: str, low: float, high: float) -> dict[str, Any]:
    """What a trust-region step has beyond the family's parameters; ``radius`` names the constructor's argument."""
    return {
        radius: trial.suggest_float(radius, low, high, log=True),
        "cg_max_steps": trial.suggest_int("cg_max_steps", 5, 30),
        "cg_damping": trial.suggest_float("cg_damping", 0.01, 1.0, log=True),
    }


def _sample_epochs(trial: optuna.Trial, name: str) -> dict[str, Any]:
    """Passes of Adam over minibatches; ``name`` is the constructor's argument for their number."""
    return {
        name: trial.suggest_int(name, 1, 20),
        "policy_batch_size_pow": trial.suggest_int("policy_batch_size_pow", 5, 10),
    }


def _sample_penalty(trial: optuna.Trial) -> dict[str, Any]:
    """A coefficient that adapts; among the sampled values so that ``--trial-id`` finds it there."""
    return {"adaptive_coef": trial.suggest_categorical("adaptive_coef", [True])}


def _sample_wasserstein_region(trial: optuna.Trial) -> dict[str, Any]:
    """A Wasserstein radius, and the KL that caps the step: with the file's, longer radii would change nothing."""
    return {
        **_sample_trust_region(trial, "target_distance", 0.002, 0.2),
        "target_kl": trial.suggest_float("target_kl", 0.002, 0.5, log=True),
    }


SPECIFIC_SAMPLERS: dict[str, Callable[[optuna.Trial], dict[str, Any]]] = {
    "wnpg": lambda trial: {
        "std_weight": trial.suggest_categorical("std_weight", [1.0, 2.0, 4.0]),
        **_sample_wasserstein_region(trial),
    },
    # A KL summed over the action dimensions: the upper end serves robots with many joints.
    "npg": lambda trial: _sample_trust_region(trial, "target_kl", 0.002, 0.5),
    "pg": lambda trial: _sample_epochs(trial, "n_policy_updates"),
    "bgpg": lambda trial: {
        **_sample_epochs(trial, "n_policy_updates"),
        **_sample_penalty(trial),
        "target_distance": trial.suggest_float("target_distance", 0.002, 0.2, log=True),
    },
    "bgwnpg": lambda trial: {
        **_sample_wasserstein_region(trial),
        **_sample_epochs(trial, "n_penalized_epochs"),
        "actor_learning_rate": trial.suggest_float("actor_learning_rate", 1e-5, 1e-3, log=True),
        **_sample_penalty(trial),
    },
}


def sample_policy_gradient_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any], *, algo: str
) -> dict[str, Any]:
    """Draw the hyperparameters of one trial: what the policy-gradient family shares, then what ``algo`` adds.

    The ranges of the shared part are RL-Zoo's for TRPO. The signature up to ``algo`` is RL-Zoo's.
    """
    sampled = {
        "batch_size_pow": trial.suggest_int("batch_size_pow", 5, 10),
        "n_steps_pow": trial.suggest_int("n_steps_pow", 5, 12),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.0001, 0.03, log=True),
        "one_minus_gae_lambda": trial.suggest_float("one_minus_gae_lambda", 0.0001, 0.1, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 0.002, log=True),
        "n_critic_updates": trial.suggest_int("n_critic_updates", 5, 30),
        "net_arch": trial.suggest_categorical("net_arch", ["small", "medium"]),
        "activation_fn": trial.suggest_categorical("activation_fn", ["tanh", "relu"]),
        **SPECIFIC_SAMPLERS[algo](trial),
    }
    hyperparams = convert_policy_gradient_params(sampled)
    for name in ("gamma", "n_steps", "batch_size"):
        trial.set_user_attr(name, hyperparams[name])
    return hyperparams


def convert_policy_gradient_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """Turn a trial's raw parameters into constructor arguments (RL-Zoo calls this alone for ``--trial-id``)."""
    from rl_zoo3.hyperparams_opt import convert_onpolicy_params

    hyperparams = convert_onpolicy_params(sampled_params)
    if "policy_batch_size_pow" in hyperparams:
        hyperparams["policy_batch_size"] = 2 ** hyperparams.pop("policy_batch_size_pow")
    return hyperparams


# What is sampled of the particles' arguments, by its name in a trial
OF_PARTICLES = {"critic_learning_rate": "learning_rate", "target_kl": "target_kl", "target_distance": "target_distance"}


def sample_population_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any], *, algo: str
) -> dict[str, Any]:
    """Draw the hyperparameters of one trial of a population; the particles' algorithm, which decides what they read, and what
    is not sampled of their arguments are the file's (see :func:`sb3_wng.zoo._with_particles`)."""
    particles = trial.user_attrs.get("particles", "wnpg")
    kind = KINDS[particles]
    sampled = {
        # one choice: among the sampled values so that --trial-id finds it there
        "algorithm_kwargs": trial.suggest_categorical("algorithm_kwargs", [trial.user_attrs.get("algorithm_kwargs", "{}")]),
        "n_steps_pow": trial.suggest_int("n_steps_pow", 5, 10),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.0001, 0.03, log=True),
        "net_arch": trial.suggest_categorical("net_arch", ["small", "medium"]),
        "activation_fn": trial.suggest_categorical("activation_fn", ["tanh", "relu"]),
    }
    if kind.has_critic:
        sampled["one_minus_gae_lambda"] = trial.suggest_float("one_minus_gae_lambda", 0.0001, 0.1, log=True)
        sampled["critic_learning_rate"] = trial.suggest_float("critic_learning_rate", 1e-5, 0.002, log=True)
    if kind.is_natural:
        sampled["target_kl"] = trial.suggest_float("target_kl", 0.002, 0.5, log=True)
    else:
        sampled["learning_rate"] = trial.suggest_float("learning_rate", 1e-4, 0.02, log=True)
    if particles == "wnpg":
        sampled["target_distance"] = trial.suggest_float("target_distance", 0.002, 0.2, log=True)
    if algo == "svpg":
        sampled["temperature"] = trial.suggest_float("temperature", 0.1, 100.0, log=True)
    else:
        sampled["wasserstein_coef"] = trial.suggest_float("wasserstein_coef", -1.0, 0.0)
    hyperparams = convert_population_params(sampled)
    for name in ("gamma", "n_steps"):
        trial.set_user_attr(name, hyperparams[name])
    return hyperparams


def convert_population_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """Turn a trial's raw parameters into constructor arguments, those of the particles among ``algorithm_kwargs``."""
    hyperparams = convert_policy_gradient_params({"one_minus_gae_lambda": 0.05, **sampled_params})
    if "critic_learning_rate" not in hyperparams:
        del hyperparams["gae_lambda"]  # nothing reads it
    particles = json.loads(hyperparams.pop("algorithm_kwargs", "{}"))
    particles.update({name: hyperparams.pop(key) for key, name in OF_PARTICLES.items() if key in hyperparams})
    return {**hyperparams, "algorithm_kwargs": particles}


def sample_evolution_strategy_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any], *, algo: str
) -> dict[str, Any]:
    """Draw the hyperparameters of one trial of an evolution strategy; policy and normalisation are the file's."""
    sampled = {
        "learning_rate": trial.suggest_float("learning_rate", 0.003, 0.3, log=True),
        "n_delta": trial.suggest_int("n_delta", 10, 100, log=True),
        "delta_std": trial.suggest_float("delta_std", 0.01, 0.3, log=True),
        "fitness_shaping": trial.suggest_categorical("fitness_shaping", ["standardize", "centered_rank", "utility"]),
    }
    if algo in ("wnes", "bgwnes"):
        sampled["natural_coef"] = trial.suggest_float("natural_coef", -1.5, 1.0)
        sampled["log_bandwidth"] = trial.suggest_float("log_bandwidth", -0.5, 1.5)
        sampled["damping"] = trial.suggest_float("damping", 0.01, 1.0, log=True)
    if algo in ("bges", "bgwnes"):
        sampled["wasserstein_coef"] = trial.suggest_float("wasserstein_coef", -2.0, 0.0)
        sampled["n_previous"] = trial.suggest_int("n_previous", 2, 200, log=True)
    if algo == "nsres":
        sampled["novelty_weight"] = trial.suggest_float("novelty_weight", 0.1, 0.9)
        sampled["n_neighbors"] = trial.suggest_int("n_neighbors", 2, 20)
    return sampled


def convert_evolution_strategy_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """A trial's raw parameters are constructor arguments already."""
    return dict(sampled_params)
