"""How a model's rollouts and reference meet its penalty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium.spaces import flatdim
from numpy.typing import NDArray

from sb3_wng.algorithms.behavior_samples import N_RESAMPLED, STATE_EMBEDDINGS
from sb3_wng.algorithms.penalty import BehaviorPenalty, check_dimensions
from sb3_wng.algorithms.surrogate import PolicyBatch
from sb3_wng.behavior import (
    EMBEDDINGS,
    BehaviorEmbedding,
    Trajectories,
    Windows,
    cut_windows,
    flat_actions,
    flat_observations,
    make_embedding,
    reference_points,
)

if TYPE_CHECKING:
    from sb3_wng.algorithms.policy_gradient import NaturalPolicyGradient


def trajectory_embedding(model: NaturalPolicyGradient) -> BehaviorEmbedding | None:
    """The model's embedding, or ``None`` if it is one of single states."""
    if isinstance(model.embedding, str) and model.embedding in STATE_EMBEDDINGS:
        return None
    return make_embedding(model.embedding)


def make_penalty(model: NaturalPolicyGradient) -> BehaviorPenalty:
    """The penalty that the model's arguments describe."""
    return BehaviorPenalty(
        model.wasserstein_coef,
        model.distance,
        model.entropic_reg,
        trajectory_embedding(model),
        model.embedding_horizon,
        N_RESAMPLED if model.embedding == "actions_and_values" else 1,
        None if model.reference is None else th.as_tensor(model.reference, device=model.device),
        model.seed,
    )


def embed_reference(model: NaturalPolicyGradient) -> NDArray[np.float32]:
    """The reference as points, checked against the model's environment.

    :raises ValueError: for what is no behaviour of that environment
    """
    embedding = trajectory_embedding(model)
    points = reference_points(model.reference, embedding, model.embedding_horizon)
    if model.env is not None:
        blank = _blank_trajectory(model)
        if embedding is None:
            check_dimensions(blank.actions.shape[2], points.shape[1])
        elif type(embedding) in EMBEDDINGS.values():
            check_dimensions(embedding(blank).shape[1], points.shape[1])
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
    windows, trajectories = _windows_of_rollout(model)
    points = penalty.embedding(trajectories).to(batch.advantages).detach()
    signal = penalty.signal(points)
    per_step = th.zeros_like(batch.advantages)
    n_steps = windows.mask.sum(dim=1).to(signal.device)
    per_step[windows.index[windows.mask].to(signal.device)] = signal.repeat_interleave(n_steps)
    return batch._replace(advantages=batch.advantages - per_step)


def _windows_of_rollout(model: NaturalPolicyGradient) -> tuple[Windows, Trajectories]:
    """The filled and flattened rollout buffer as windows, in the buffer's order.

    Where there is a reference, what ``VecNormalize`` did is undone: the reference was seen through another one, or none.
    """
    buffer = model.rollout_buffer
    observations: Any = buffer.observations
    rewards = buffer.swap_and_flatten(buffer.rewards).flatten()
    normalizer = model.get_vec_normalize_env()
    if model.reference is not None and normalizer is not None:
        observations, rewards = normalizer.unnormalize_obs(observations), normalizer.unnormalize_reward(rewards)
    windows = cut_windows(buffer.episode_starts.astype(bool), model.embedding_horizon)
    trajectories = Trajectories.from_steps(
        windows,
        flat_observations(observations, model.observation_space),
        flat_actions(buffer.actions, model.action_space),
        th.as_tensor(rewards).float(),
    )
    return windows, trajectories
