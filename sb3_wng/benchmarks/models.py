"""What an experiment is, and how a method's settings become a model."""

from __future__ import annotations

import importlib
import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import nn

from sb3_wng.benchmarks.published import Published
from sb3_wng.zoo_files import hyperparams_folder

OURS = ("WNPG", "NPG", "PG", "BGPG", "BGWNPG")
ALGORITHMS = {**dict.fromkeys(OURS, "sb3_wng"), "PPO": "stable_baselines3", "TRPO": "sb3_contrib"}
NOT_FOR_CONSTRUCTORS = ("n_timesteps", "policy")


@dataclass(frozen=True)
class Method:
    """An algorithm and its settings.

    :param algorithm: a name in :data:`ALGORITHMS`
    :param hyperparameters: YAML file that has the task's settings: ``"wnpg"`` and ``"published/wnpg"`` ship with this package,
        ``"rl_zoo3/ppo"`` with RL-Zoo; ``None``: the constructor's defaults
    :param arguments: settings of this experiment, which override the file's
    :param of_environment: settings in single environments, which have the last word
    """

    algorithm: str
    hyperparameters: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    of_environment: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """Every method on every environment with every seed.

    :param environments: steps of training, by environment
    :param n_bins: parts of a run over which the returns of training episodes are averaged
    :param baselines: methods that all others are paired with, seed by seed; scores are only shown where there are some
    :param saturating: environments that most methods solve, where the area under the curve tells them apart
    :param optimum: best possible returns, where known exactly; the distance from them is then drawn on a logarithmic axis
    :param environment_arguments: settings of all methods in an environment, over those of their YAML files
    """

    name: str
    description: str
    methods: Mapping[str, Method]
    environments: Mapping[str, int]
    seeds: tuple[int, ...]
    n_bins: int = 20
    baselines: tuple[str, ...] = ()
    saturating: tuple[str, ...] = ()
    optimum: Mapping[str, float] = field(default_factory=dict)
    environment_arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    published: tuple[Published, ...] = ()


def algorithm_class(name: str) -> type[BaseAlgorithm]:
    return getattr(importlib.import_module(ALGORITHMS[name]), name)


def register_environments() -> None:
    """Make PyBullet's robots known to Gymnasium."""
    import pybullet_envs_gymnasium  # noqa: F401


def hyperparameter_file(name: str) -> dict[str, dict[str, Any]]:
    """A YAML file of hyperparameters, by environment; see :class:`Method` for its name."""
    if name.startswith("rl_zoo3/"):
        folder = importlib.resources.files("rl_zoo3").joinpath("hyperparams")
        return yaml.safe_load(folder.joinpath(f"{name.removeprefix('rl_zoo3/')}.yml").read_text())
    return yaml.safe_load((hyperparams_folder() / f"{name}.yml").read_text())


def shipped_hyperparameters(name: str, environment: str) -> dict[str, Any]:
    """A task's entry in a YAML file, less what no constructor takes; ``n_envs`` and ``normalize`` are the environment's.

    RL-Zoo has settings for version 4 of MuJoCo's tasks only; they are version 5's, too.

    :raises ValueError: if the file has no entry for the environment
    """
    entries = hyperparameter_file(name)
    if environment not in entries and name.startswith("rl_zoo3/"):
        environment = environment.replace("-v5", "-v4")
    if environment not in entries:
        raise ValueError(f"{name}.yml has no entry for {environment}; add one, or run the experiment's other environments")
    return {key: _evaluate(value) for key, value in entries[environment].items() if key not in NOT_FOR_CONSTRUCTORS}


def _evaluate(value: Any) -> Any:
    """RL-Zoo's two extensions of YAML: ``lin_x`` and dictionaries as Python expressions."""
    if isinstance(value, str) and value.startswith("lin_"):
        return LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
    if isinstance(value, str) and value.startswith("dict("):
        return eval(value, {"dict": dict, "nn": nn})
    return value


def settings(experiment: Experiment, method: str, environment: str) -> dict[str, Any]:
    """All settings of a method in an environment, :func:`make_env`'s among them.

    :raises ValueError: if a YAML file lacks the environment
    """
    chosen, shared = experiment.methods[method], experiment.environment_arguments.get(environment)
    if chosen.hyperparameters is None or (
        shared is not None and environment not in hyperparameter_file(chosen.hyperparameters)
    ):
        shipped: dict[str, Any] = {"normalize": True}
    else:
        shipped = shipped_hyperparameters(chosen.hyperparameters, environment)
    return {**shipped, **(shared or {}), **chosen.arguments, **chosen.of_environment.get(environment, {})}


def make_env(environment: str, settings: dict[str, Any], seed: int) -> VecEnv:
    """The environment of a method's settings, from which it takes ``n_envs`` and ``normalize`` away."""
    register_environments()
    env = make_vec_env(environment, settings.pop("n_envs", 1), seed=seed)
    normalize = settings.pop("normalize", False)
    if not normalize:
        return env
    arguments = normalize if isinstance(normalize, dict) else {}
    return VecNormalize(env, **{"gamma": settings.get("gamma", 0.99), **arguments})


def make_model(experiment: Experiment, method: str, environment: str, seed: int) -> BaseAlgorithm:
    """A fresh model, as an experiment trains it."""
    arguments = settings(experiment, method, environment)
    env = make_env(environment, arguments, seed)
    policy = arguments.pop("policy", "MlpPolicy")
    return algorithm_class(experiment.methods[method].algorithm)(policy, env, seed=seed, device="cpu", **arguments)
