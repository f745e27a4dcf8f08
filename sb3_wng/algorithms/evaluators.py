"""Who runs the episodes of an evolution strategy, and how many steps of them are embedded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stable_baselines3.common.vec_env import VecEnv

from sb3_wng.algorithms.evaluation import Evaluator
from sb3_wng.algorithms.evolution_arguments import check_normalization
from sb3_wng.algorithms.step_counter import StepCounter
from sb3_wng.algorithms.vec_env_evaluator import VecEnvEvaluator
from sb3_wng.behavior import ActionSequence, BehaviorEmbedding, RewardToGo, make_embedding

if TYPE_CHECKING:
    from sb3_wng.algorithms.evolution import EvolutionStrategy


def make_evaluator(model: EvolutionStrategy, counter: StepCounter) -> Evaluator:
    """The model's own environments, or processes that have theirs.

    :param counter: hears of every step of the model's environments
    :raises ValueError: for an environment that does not go with the model's settings
    """
    assert model.env is not None
    check_normalization(model)  # the environment may have been set after the model was made
    embedding = make_embedding(model.embedding) if model.uses_embedding else None
    horizon = model.embedding_horizon
    if embedding is not None and horizon is None:
        horizon = default_horizon(embedding, model.env)
    if model.n_jobs == 1 and model.backend == "loky":
        return VecEnvEvaluator(model.env, model.policy, embedding, horizon, counter)
    from sb3_wng.algorithms.workers import make_worker_evaluator

    return make_worker_evaluator(
        model.policy,
        model.env,
        embedding,
        horizon,
        n_jobs=int(model.n_jobs),
        backend=model.backend,
        ray_address=model.ray_address,
        episode_timeout=model.episode_timeout,
    )


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
    """Steps after which an episode is truncated, as the ``TimeLimit`` wrapper, a batched task, or the spec has it."""
    for name in ("_max_episode_steps", "max_episode_steps", "spec"):
        if not env.has_attr(name):  # asking a SubprocVecEnv for what is not there would end its process
            continue
        value = env.get_attr(name, indices=[0])[0]
        limit = getattr(value, "max_episode_steps", None) if name == "spec" else value
        if limit is not None:
            return int(limit)
    return None
