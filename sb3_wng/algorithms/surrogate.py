"""The surrogate objective of a rollout: its gradient at the current policy, and how far a new policy has moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_wng.algorithms.action_laws import action_law
from sb3_wng.algorithms.rollouts import select
from sb3_wng.geometry import ActionLaw


class PolicyBatch(NamedTuple):
    """What a policy step needs to know of n transitions."""

    observations: PyTorchObs
    actions: th.Tensor
    advantages: th.Tensor  # (n,)
    old_log_prob: th.Tensor  # (n,)
    old_law: ActionLaw  # of the policy that collected the data, detached

    def rows(self, index: th.Tensor) -> PolicyBatch:
        """Some of the transitions."""
        return PolicyBatch(
            select(self.observations, index),
            self.actions[index],
            self.advantages[index],
            self.old_log_prob[index],
            self.old_law.select(index),
        )


class PolicyGradient(NamedTuple):
    """Gradient of the surrogate at the current policy, and the graph it came from."""

    gradient: th.Tensor  # (p,), ascends the return
    objective: float
    law: ActionLaw  # at the batch's states, attached to the graph
    log_prob: th.Tensor  # (n,), attached to the graph


class Measurement(NamedTuple):
    """A policy compared with the one that collected the data; means over states."""

    objective: float
    wasserstein_distance: float  # squared, in squared action units
    kl_divergence: float  # KL(old || new), summed over action dimensions


def surrogate(log_prob: th.Tensor, batch: PolicyBatch) -> th.Tensor:
    """E[pi(a|s) / pi_old(a|s) A] (Moskovitz et al. 2021, eq. 1, right)."""
    return (th.exp(log_prob - batch.old_log_prob) * batch.advantages).mean()


def policy_gradient(
    policy: ActorCriticPolicy, parameters: Sequence[nn.Parameter], batch: PolicyBatch, std_weight: float = 1.0
) -> PolicyGradient:
    """Gradient of :func:`surrogate` in ``parameters``; the graph is kept for the metric."""
    distribution = policy.get_distribution(batch.observations)
    law = action_law(distribution, std_weight)
    log_prob = distribution.log_prob(batch.actions)
    objective = surrogate(log_prob, batch)
    grads = th.autograd.grad(objective, list(parameters), retain_graph=True, allow_unused=True, materialize_grads=True)
    return PolicyGradient(th.cat([grad.reshape(-1) for grad in grads]), objective.item(), law, log_prob)


def measure(policy: ActorCriticPolicy, batch: PolicyBatch, std_weight: float = 1.0) -> Measurement:
    """Compare the current policy with the one that collected the batch."""
    with th.no_grad():
        distribution = policy.get_distribution(batch.observations)
        law = action_law(distribution, std_weight)
        return Measurement(
            surrogate(distribution.log_prob(batch.actions), batch).item(),
            batch.old_law.wasserstein_distance(law).mean().item(),
            batch.old_law.kl_divergence(law).mean().item(),
        )
