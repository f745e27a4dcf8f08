"""A policy without a learned critic, for the regulator of the deterministic-optimum study."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn


class NoCriticPolicy(ActorCriticPolicy):
    """Values that are always zero, as the regulator's are at its optimum: advantages without a critic's errors.

    A learned critic's errors stay when the policy's spread, and with it what its samples can tell, has vanished.
    """

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.value_net = _Zero(self.mlp_extractor.latent_dim_vf)


class _Zero(nn.Linear):
    def __init__(self, n_features: int) -> None:
        super().__init__(n_features, 1)

    def forward(self, features: Tensor) -> Tensor:
        return 0 * super().forward(features)  # still a function of parameters, which optimisers expect
