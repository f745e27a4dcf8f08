"""How a model's rollouts and reference meet its penalty."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch as th
from gymnasium.spaces import flatdim
from numpy.typing import NDArray

from sb3_wng.algorithms.arguments import is_of_states
from sb3_wng.algorithms.behavior_samples import N_RESAMPLED
from sb3_wng.algorithms.penalty import BehaviorPenalty, check_dimensions
from sb3_wng.algorithms.rollouts import played_actions, rollout_windows
from sb3_wng.algorithms.surrogate import Measurement, PolicyBatch
from sb3_wng.behavior import (
    EMBEDDINGS,
    BehaviorEmbedding,
    Trajectories,
    check_unnormalizable,
    make_embedding,
    reference_points,
)

if TYPE_CHECKING:
    from sb3_wng.algorithms.policy_gradient import NaturalPolicyGradient


MANY_WINDOWS = 2048  # of a rollout: their transport takes seconds


def trajectory_embedding(model: NaturalPolicyGradient) -> BehaviorEmbedding | None:
    """The model's embedding, or ``None`` if it is one of single states."""
    return None if is_of_states(model) else make_embedding(model.embedding)


def make_penalty(model: NaturalPolicyGradient) -> BehaviorPenalty:
    """The penalty that the model's arguments describe."""
    return BehaviorPenalty(
        model.wasserstein_coef,
        model.distance,
        model.entropic_reg,
        trajectory_embedding(model),
        N_RESAMPLED if model.embedding == "actions_and_values" else 1,
        None if model.reference is None else th.as_tensor(model.reference, device=model.device),
        None if model.reference is None else lambda actions: played_samples(model, actions),
        model.adaptive_coef,
        model.seed,
    )


def played_samples(model: NaturalPolicyGradient, actions: th.Tensor) -> th.Tensor:
    """Samples of the law of actions (squashed actions have it before squashing) as the environment gets them."""
    return played_actions(actions.tanh() if model.policy.squash_output else actions, model.policy, model.action_space)


def keep_given_starts(model: NaturalPolicyGradient) -> None:
    """Leave what an adaptive damping or coefficient had become in the file if ``load()`` was given another start for it."""
    starts = {"cg_damping": model.cg_damping, "wasserstein_coef": model.wasserstein_coef}
    given = {name for name, start in starts.items() if model.adapted_from.get(name, start) != start}
    model.natural_gradient.damping.keeps_setting = "cg_damping" in given
    model.behavior_penalty.keeps_setting = "wasserstein_coef" in given
    model.adapted_from = starts


def embed_reference(model: NaturalPolicyGradient) -> NDArray[np.float32]:
    """The reference as points, checked against the model's environment.

    :raises ValueError: for what is no behaviour of that environment
    """
    embedding = trajectory_embedding(model)
    points = reference_points(model.reference, embedding, model.embedding_horizon, seed=model.seed)
    if model.env is not None:
        if embedding is not None:
            check_unnormalizable(model.env, model.get_vec_normalize_env())
        blank = _blank_trajectory(model)
        if embedding is None:
            check_dimensions(blank.actions.shape[2], points.shape[1], model.embedding)
        elif type(embedding) in EMBEDDINGS.values():
            check_dimensions(embedding(blank).shape[1], points.shape[1], model.embedding)
    return points


def _blank_trajectory(model: NaturalPolicyGradient) -> Trajectories:
    """One window of zeros, from which the built-in embeddings' dimension can be told."""
    shape = (1, model.embedding_horizon)
    return Trajectories(
        th.zeros(*shape, flatdim(model.observation_space)),
        th.zeros(*shape, flatdim(model.action_space)),
        th.zeros(shape),
        th.ones(shape, dtype=th.bool),
    )


def begin_penalty(model: NaturalPolicyGradient, penalty: BehaviorPenalty, batch: PolicyBatch) -> PolicyBatch:
    """Tell the penalty of a new rollout; returns the batch, with the penalty's signal if it is one of trajectories."""
    if penalty.embedding is None:
        penalty.begin(batch.old_law)
        return batch
    # The reference was seen through another VecNormalize, or none
    normalizer = None if model.reference is None else model.get_vec_normalize_env()
    windows, trajectories = rollout_windows(model, model.embedding_horizon, normalizer, model.reference is not None)
    points = penalty.embedding(trajectories).to(batch.advantages).detach()
    if len(points) > MANY_WINDOWS:
        warnings.warn(
            f"{len(points)} windows of behaviour are transported after each rollout, and the cost grows as their square: a "
            "longer embedding_horizon makes fewer",
            stacklevel=2,
        )
    signal = windows.scatter(penalty.signal(points), len(batch.advantages))
    return batch._replace(advantages=batch.advantages - signal)


def end_penalty(model: NaturalPolicyGradient, penalty: BehaviorPenalty, measured: Measurement) -> None:
    """Adapt the coefficient to how far the rollout's update went, and log both."""
    model.logger.record("train/wasserstein_coef", penalty.coefficient.item())
    if penalty.standing is None:
        return
    distance = measured.penalty_distance if penalty.embedding is None else penalty.standing.distance
    if model.distance != "kl":
        model.logger.record("train/wasserstein_distance", distance)
    if model.distance == "dual":
        model.logger.record("train/n_dual_fallbacks", penalty.samples.n_fallbacks.item())
    if model.adaptive_coef:
        penalty.adapt(distance, model.scheduled(model.target_distance_schedule))
