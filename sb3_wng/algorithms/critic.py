"""Fitting a critic to the returns of a rollout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch as th
import torch.nn.functional as F
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import nn

from sb3_wng.algorithms.rollouts import minibatches, select

if TYPE_CHECKING:
    from sb3_wng.algorithms.policy_gradient import NaturalPolicyGradient


def fit_critic(model: NaturalPolicyGradient, rollout: RolloutBufferSamples) -> None:
    """``n_critic_updates`` epochs on minibatches; the actor stays as it is, parameters and batch statistics alike."""
    if not model.critic_parameters:
        return
    policy = model.policy
    policy.set_training_mode(True)
    _hold_batch_statistics(policy, model.actor_parameters)
    policy.optimizer.zero_grad()  # leaves the actor without gradients: the optimiser passes it over
    losses = []
    for _ in range(model.n_critic_updates):
        for index in minibatches(len(rollout.returns), model.batch_size, model.device):
            values = policy.predict_values(select(rollout.observations, index)).flatten()
            loss = F.mse_loss(values, rollout.returns[index])
            policy.optimizer.zero_grad()
            loss.backward(inputs=model.critic_parameters)
            policy.optimizer.step()
            losses.append(loss.detach())
    if losses:
        model.logger.record("train/value_loss", th.stack(losses).mean().item())


def _hold_batch_statistics(policy: nn.Module, actor_parameters: list[nn.Parameter]) -> None:
    """Keep batch norm that the actor shares from moving it, unseen by the trust region."""
    actor = {id(parameter) for parameter in actor_parameters}
    for module in policy.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and any(id(q) in actor for q in module.parameters()):
            module.eval()
