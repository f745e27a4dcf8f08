"""A population without gradients, as a control of SVPG: one cross-entropy method per particle, none knows of another."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sb3_wng.population import SVPG, PopulationPolicy

ELITES = 0.25  # of a particle's candidates


class CrossEntropy:
    """Diagonal Gaussians over the parameters of a policy's mean action, fitted to the best of their samples.

    The textbook method (Rubinstein & Kroese 2004). They start around SB3's initialisation, as wide as the initial parameters
    are large (root mean square).

    :param model: a population with one particle for each column of its environment, whose policy the candidates use in turn
    :param n_particles: Gaussians
    """

    def __init__(self, model: SVPG, n_particles: int) -> None:
        self.model = model
        self.policy: PopulationPolicy = model.policy
        if model.n_envs != len(self.policy) or model.n_envs % n_particles:
            raise ValueError(
                f"{model.n_envs} columns and {len(self.policy)} policies cannot be dealt to {n_particles} Gaussians"
            )
        starts = self.policy.theta.reshape(n_particles, -1, self.policy.theta.shape[1])
        self.means = starts[:, 0].clone()
        self.stds = self.means.square().mean(dim=1, keepdim=True).sqrt().expand_as(self.means).clone()
        self.n_candidates = starts.shape[1]

    def iterate(self) -> NDArray[np.float64]:
        """One generation; returns (n_particles, n_candidates) of one episode each."""
        noise = torch.randn(*self.stds.shape[:1], self.n_candidates, self.stds.shape[1])
        candidates = self.means[:, None] + self.stds[:, None] * noise
        self.policy.theta.copy_(candidates.flatten(end_dim=1))
        returns = self._episodes().reshape(len(self.means), -1)
        self.means, self.stds = refit(candidates, torch.as_tensor(returns))
        return returns

    @torch.inference_mode()
    def _episodes(self) -> NDArray[np.float64]:
        """Return of the first episode of every column, at most as long as a rollout."""
        env, stack = self.model.env, self.policy.stack
        assert env is not None
        assert stack is not None, "candidates act in one batch: fully connected policies on flat observations"
        low, high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
        observations, returns, is_alive = env.reset(), np.zeros(env.num_envs), np.ones(env.num_envs, dtype=bool)
        for _ in range(self.model.n_steps):
            actions = stack.outputs(torch.as_tensor(observations)).flatten(end_dim=1).numpy()
            step = env.step_batch(np.clip(actions, low, high))  # type: ignore[attr-defined]
            returns += is_alive * step.rewards
            is_alive &= ~(step.terminated | step.truncated)
            observations = step.observations
        return returns


def refit(candidates: Tensor, returns: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the best candidates.

    :param candidates: shape (n, m, p)
    :param returns: shape (n, m)
    :return: both (n, p)
    """
    n_elites = max(2, round(ELITES * candidates.shape[1]))
    best = returns.topk(n_elites, dim=1).indices
    elites = candidates.gather(1, best[:, :, None].expand(-1, -1, candidates.shape[2]))
    return elites.mean(dim=1), elites.std(dim=1)
