"""Fitting a critic to the returns of a rollout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch as th
import torch.nn.functional as F
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel
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
    features = _fixed_features(model, rollout.observations) if model.n_critic_updates > 1 else None
    losses = []
    for _ in range(model.n_critic_updates):
        for index in minibatches(len(rollout.returns), model.batch_size, model.device):
            if features is None:
                values = policy.predict_values(select(rollout.observations, index)).flatten()
            else:
                values = policy.value_net(policy.mlp_extractor.forward_critic(features[index])).flatten()
            loss = F.mse_loss(values, rollout.returns[index])
            policy.optimizer.zero_grad()
            loss.backward(inputs=model.critic_parameters)
            policy.optimizer.step()
            losses.append(loss.detach())
    if losses:
        model.logger.record("train/value_loss", th.stack(losses).mean().item())


def _fixed_features(model: NaturalPolicyGradient, observations: Any) -> th.Tensor | None:
    """What SB3's shared extractor, which is the actor's, makes of the rollout: it stays as it is while the critic is fitted.

    ``None`` where every epoch has to compute it: an extractor that the critic trains, or has noise.
    """
    policy = model.policy
    extractor = policy.vf_features_extractor
    own = {id(parameter) for parameter in model.critic_parameters}
    if not list(extractor.parameters()) or any(id(parameter) in own for parameter in extractor.parameters()):
        return None
    if type(policy).predict_values is not ActorCriticPolicy.predict_values:
        return None
    with th.no_grad():
        features = BaseModel.extract_features(policy, observations, extractor)
        modes = [(module, module.training) for module in extractor.modules()]
        extractor.eval()
        is_steady = th.equal(features, BaseModel.extract_features(policy, observations, extractor))
        for module, mode in modes:
            module.training = mode
    return features if is_steady else None


def _hold_batch_statistics(policy: ActorCriticPolicy, actor_parameters: list[nn.Parameter]) -> None:
    """Keep batch norm that the actor shares, with parameters or without, from moving it, unseen by the trust region."""
    actor = {id(parameter) for parameter in actor_parameters}
    extractor = set(policy.pi_features_extractor.modules())
    for module in policy.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            if module in extractor or any(id(parameter) in actor for parameter in module.parameters()):
                module.eval()
