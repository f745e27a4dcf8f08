"""From an SB3 policy to geometry: its action law, and which of its parameters make up the actor."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_wng.geometry import ActionLaw, CategoricalLaw, GaussianLaw


def action_law(distribution: Distribution, std_weight: float = 1.0) -> ActionLaw:
    """The law of an SB3 distribution's actions at each state, attached to the graph.

    For gSDE it is the marginal over the noise, for squashed actions the law before squashing: both geometries are
    invariant there (Fisher) or defined there (Wasserstein).

    :param distribution: as returned by ``policy.get_distribution(obs)``; read at once, SB3 reuses the object
    :param std_weight: see :class:`sb3_wng.geometry.GaussianLaw`
    :raises ValueError: for a distribution without a closed form
    """
    inner: Any = distribution.distribution  # a list for MultiDiscrete, else a torch distribution
    if isinstance(distribution, (DiagGaussianDistribution, StateDependentNoiseDistribution)):
        return GaussianLaw(inner.mean, inner.stddev, std_weight)
    if isinstance(distribution, CategoricalDistribution):
        return CategoricalLaw(inner.logits, (inner.logits.shape[1],))
    if isinstance(distribution, MultiCategoricalDistribution):
        logits = [factor.logits for factor in inner]
        return CategoricalLaw(th.cat(logits, dim=1), tuple(factor.shape[1] for factor in logits))
    if isinstance(distribution, BernoulliDistribution):
        pairs = th.stack([F.logsigmoid(-inner.logits), F.logsigmoid(inner.logits)], dim=2)
        return CategoricalLaw(pairs.flatten(start_dim=1), (2,) * inner.logits.shape[1])
    raise ValueError(
        f"policy: its {type(distribution).__name__} has no closed-form geometry; accepted are diagonal Gaussian, gSDE, "
        "categorical, multi-categorical and Bernoulli distributions"
    )


def release_graph(policy: ActorCriticPolicy, observation_space: spaces.Space) -> None:
    """Leave the policy's distribution without a graph, which could not be copied with the policy."""
    with th.no_grad():
        policy.get_distribution(policy.obs_to_tensor(_any_observation(observation_space))[0])


def actor_and_critic_parameters(
    policy: ActorCriticPolicy, observation_space: spaces.Space
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split a policy's trainable parameters by what they influence, whatever they are called.

    The actor's are those that the action law depends on, a shared features extractor included: the trust region must
    hold for everything that moves the law. The critic's are the others that the values depend on.

    :raises ValueError: for a policy that has no action distribution, or one that depends on no parameter
    """
    if not hasattr(policy, "get_distribution") or not hasattr(policy, "predict_values"):
        raise ValueError(
            f"policy: {type(policy).__name__} has no action distribution (get_distribution) or no value function "
            "(predict_values); policy gradients need an ActorCriticPolicy"
        )
    observation, _ = policy.obs_to_tensor(_any_observation(observation_space))
    was_training = policy.training
    policy.set_training_mode(False)
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    law = action_law(policy.get_distribution(observation))
    reaches_law = _gradients(law.coordinates, parameters)
    reaches_value = _gradients(policy.predict_values(observation), parameters)
    release_graph(policy, observation_space)
    policy.set_training_mode(was_training)
    actor = [q for q, grad in zip(parameters, reaches_law, strict=True) if grad is not None]
    rest = zip(parameters, reaches_law, reaches_value, strict=True)
    critic = [q for q, law_grad, value_grad in rest if law_grad is None and value_grad is not None]
    if not actor:
        raise ValueError(f"policy: the action law of {type(policy).__name__} depends on no trainable parameter")
    return actor, critic


def _gradients(output: th.Tensor, parameters: list[nn.Parameter]) -> Sequence[th.Tensor | None]:
    """``None`` for every parameter that the output does not depend on."""
    if not output.requires_grad:
        return [None] * len(parameters)
    return th.autograd.grad(output.sum(), parameters, allow_unused=True)


def _any_observation(space: spaces.Space) -> Any:
    """One observation; small numbers where a box has no bounds, or bounds too wide for a network or a generator."""
    if isinstance(space, spaces.Dict):
        return {key: _any_observation(part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Box):
        return np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)
    space = copy.deepcopy(space)
    space.seed(0)  # the caller's space keeps its random state
    return space.sample()
