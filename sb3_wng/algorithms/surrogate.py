"""The surrogate objective of a rollout: its gradient at the current policy, and how far a new policy has moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

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
    penalty_distance: float = 0.0  # what a penalty's coefficient multiplies, before it is put in its unit


class Penalty(Protocol):
    """A term of the minimised loss that depends on the law of actions at a batch's states."""

    def distance_of(self, law: ActionLaw, batch: PolicyBatch) -> th.Tensor:
        """Shape (), attached to the graph of ``law``."""

    def weigh(self, distance: th.Tensor) -> th.Tensor:
        """The term of the loss for a distance, shape ()."""


def surrogate(log_prob: th.Tensor, batch: PolicyBatch) -> th.Tensor:
    """E[pi(a|s) / pi_old(a|s) A] (Moskovitz et al. 2021, eq. 1, right)."""
    return (th.exp(log_prob - batch.old_log_prob) * batch.advantages).mean()


def policy_gradient(
    policy: ActorCriticPolicy,
    parameters: Sequence[nn.Parameter],
    batch: PolicyBatch,
    std_weight: float = 1.0,
    penalty: Penalty | None = None,
) -> PolicyGradient:
    """Gradient of :func:`surrogate`, less a penalty, in ``parameters``; the graph is kept for the metric."""
    distribution = policy.get_distribution(batch.observations)
    law = action_law(distribution, std_weight)
    log_prob = distribution.log_prob(batch.actions)
    objective = surrogate(log_prob, batch)
    if penalty is not None:
        objective = objective - penalty.weigh(penalty.distance_of(law, batch))
    grads = th.autograd.grad(objective, list(parameters), retain_graph=True, allow_unused=True, materialize_grads=True)
    return PolicyGradient(th.cat([grad.reshape(-1) for grad in grads]), objective.item(), law, log_prob)


def measure(
    policy: ActorCriticPolicy, batch: PolicyBatch, std_weight: float = 1.0, penalty: Penalty | None = None
) -> Measurement:
    """Compare the current policy with the one that collected the batch."""
    with th.no_grad():
        distribution = policy.get_distribution(batch.observations)
        law = action_law(distribution, std_weight)
        objective = surrogate(distribution.log_prob(batch.actions), batch)
        distance = objective.new_zeros(()) if penalty is None else penalty.distance_of(law, batch)
        return Measurement(
            (objective if penalty is None else objective - penalty.weigh(distance)).item(),
            batch.old_law.wasserstein_distance(law).mean().item(),
            batch.old_law.kl_divergence(law).mean().item(),
            distance.item(),
        )
