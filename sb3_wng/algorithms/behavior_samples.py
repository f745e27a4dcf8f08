"""Behaviour of an SB3 policy as samples with a gradient: what kernel metrics are estimated from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from torch import nn

from sb3_wng.algorithms.action_laws import action_law
from sb3_wng.algorithms.rollouts import policy_actions
from sb3_wng.algorithms.surrogate import PolicyBatch, PolicyGradient
from sb3_wng.behavior import BehaviorEmbedding, Trajectories, cut_windows, flat_actions, flat_observations
from sb3_wng.geometry import BehaviorSample, GaussianLaw, Pathwise, ScoreFunction

# Embeddings of single states, which need the policy; those of trajectories are in sb3_wng.behavior
STATE_EMBEDDINGS = ("actions", "actions_and_values")
N_RESAMPLED = 10  # actions per state in the released code's embedding


@dataclass(frozen=True)
class BehaviorSampler:
    """Samples of what a policy does, and how they move with its parameters.

    Gaussian actions move along the path of their noise (eq. 10, left); discrete actions, and whatever depends on states or
    rewards, are weighted by their score (eq. 10, right).

    :param policy: the current policy
    :param parameters: of the actor
    :param observation_space: of the policy
    :param action_space: of the policy
    :param generator: of resampled actions
    """

    policy: ActorCriticPolicy
    parameters: Sequence[nn.Parameter]
    observation_space: spaces.Space
    action_space: spaces.Space
    generator: th.Generator

    def actions(self, batch: PolicyBatch, estimate: PolicyGradient) -> BehaviorSample:
        """Actions given the state: the kernel compares states, and only actions are transported."""
        with th.no_grad():
            context = BasePolicy.extract_features(self.policy, batch.observations, self.policy.pi_features_extractor)
        return self._action_sample(batch, estimate, n_resampled=1)._replace(context=context)

    def actions_and_values(self, batch: PolicyBatch, estimate: PolicyGradient) -> BehaviorSample:
        """The released code's embedding: several actions of a state and its value, the states pooled."""
        with th.no_grad():
            values = self.policy.predict_values(batch.observations).reshape(-1, 1)
        return self._action_sample(batch, estimate, N_RESAMPLED, values)

    def _action_sample(
        self, batch: PolicyBatch, estimate: PolicyGradient, n_resampled: int, values: th.Tensor | None = None
    ) -> BehaviorSample:
        law = estimate.law
        if isinstance(law, GaussianLaw):
            noise = th.randn((n_resampled, *law.mean.shape), generator=self.generator).to(law.mean)
            actions = (law.mean + law.std * noise).transpose(0, 1).flatten(start_dim=1)
        else:
            actions = flat_actions(batch.actions, self.action_space)
        embeddings = actions if values is None else th.cat([actions, values], dim=1)
        if isinstance(law, GaussianLaw):
            return BehaviorSample(embeddings, Pathwise(embeddings, self.parameters))
        return BehaviorSample(embeddings, ScoreFunction(estimate.log_prob, self.parameters))

    def trajectories(
        self, buffer: RolloutBuffer, embedding: BehaviorEmbedding, horizon: int, rewards: NDArray[np.floating]
    ) -> BehaviorSample:
        """Windows of ``horizon`` steps of a rollout.

        A window's log-probability is the sum of its steps'; how the law of its first state moves is neglected.

        :param buffer: filled, and flattened by a call of ``get``
        :param rewards: in its order, shape (N,)
        """
        windows = cut_windows(buffer.episode_starts.astype(bool), horizon).to(buffer.device)
        raw = buffer.observations
        observations = (
            {key: buffer.to_torch(part) for key, part in raw.items()} if isinstance(raw, dict) else buffer.to_torch(raw)
        )
        actions = buffer.to_torch(buffer.actions).float()
        distribution = self.policy.get_distribution(observations)
        law = action_law(distribution)
        flat = flat_observations(observations, self.observation_space)
        given = buffer.to_torch(rewards)
        if embedding.is_pathwise and isinstance(law, GaussianLaw):
            squashing = getattr(distribution, "bijector", None)  # of gSDE: the law is that of actions before it
            sampled = actions if squashing is None else squashing.inverse(actions)
            moving = law.mean + law.std * ((sampled - law.mean) / law.std).detach()
            reparametrised = moving if squashing is None else squashing.forward(moving)
            points = embedding(Trajectories.from_steps(windows, flat, reparametrised, given))
            if not points.requires_grad:
                raise ValueError("embedding: is_pathwise=True promises a gradient in the actions, it returns none")
            return BehaviorSample(points, Pathwise(points, self.parameters))
        points = embedding(Trajectories.from_steps(windows, flat, flat_actions(actions, self.action_space), given))
        log_probs = windows.sum(distribution.log_prob(policy_actions(actions, self.action_space)))
        return BehaviorSample(points.detach(), ScoreFunction(log_probs, self.parameters))
