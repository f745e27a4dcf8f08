"""Stein variational policy gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_wng.algorithms.arguments import make_schedule
from sb3_wng.algorithms.rollouts import rollout_windows
from sb3_wng.behavior import BehaviorEmbedding, Trajectory, make_embedding
from sb3_wng.population.arguments import check_population_arguments, check_temperature
from sb3_wng.population.directions import PopulationDirection, behavior_repulsion, population_direction
from sb3_wng.population.population import Population


class SVPG(Population):
    """
    Stein Variational Policy Gradient (SVPG): particles that ascend the return, share gradients and keep apart.

    Every particle i moves along ``1/n sum_j [k_ij grad_j (J/temperature + log prior) + grad_j k_ij]``. Actors alone are
    coupled; every particle has its own critic, rollouts and environments. ``"pg"``, ``"pg_linear"`` and ``"a2c"`` hand the
    directions to Adam; ``"npg"`` and ``"wnpg"`` precondition them by each particle's own metric and take its own
    trust-region step.

    Paper: https://arxiv.org/abs/1704.02399 (Liu, Ramachandran, Liu & Peng, 2017), eq. 6.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy or a class)
    :param env: The environment to learn from. An id makes ``n_particles * n_envs_per_particle`` of it; a VecEnv's columns are
        split evenly, in order. :func:`sb3_wng.envs.make_batched` environments are by far the fastest
    :param algorithm: ``"pg"`` (REINFORCE: discounted returns-to-go, standardised), ``"pg_linear"`` (less a linear baseline,
        :class:`sb3_wng.population.LinearBaseline`), ``"a2c"`` (advantages by GAE), ``"npg"``, ``"wnpg"``, or one of these
        classes
    :param n_particles: Number of particles, 16 in the paper
    :param temperature: Weight of diversity against return; a number or a schedule of the remaining progress (1 to 0), see
        :mod:`sb3_wng.population.schedules`. Refers to standardised advantages; usually 1 to 30
    :param learning_rate: Of Adam on Stein's directions (not ``"npg"`` and ``"wnpg"``, which take their own steps); a float or
        a schedule. The critics' is in ``algorithm_kwargs``
    :param n_steps: Steps per environment and rollout
    :param gamma: Discount factor
    :param gae_lambda: Bias-variance trade-off of the generalized advantage estimator (``"pg"`` and ``"pg_linear"`` have none)
    :param mode: ``"svpg"``, or a control: ``"independent"`` (no interaction), ``"joint"`` (one agent with all environments),
        ``"coupling"`` (shared gradients, no repulsion), ``"radial"`` (no interaction, only the growth of the parameters that
        repulsion amounts to in high dimension)
    :param kernel: ``"parameters"``, as published, or ``"behavior"``: particles repel in the space of ``embedding``; gradients
        are then not shared, since near behaviours may be far in parameters
    :param bandwidth: ``"authors"``, ``"printed"`` or a number; see :func:`sb3_wng.geometry.median_bandwidth`
    :param prior_std: Standard deviation of a Gaussian prior over parameters, centred at zero: a weight decay of
        ``1 / prior_std**2``; ``None``: flat
    :param normalize_advantage: Standardise the advantages over each particle's rollout, so that a temperature means the same
        on every task
    :param n_envs_per_particle: Environments of each particle where ``env`` is an id
    :param initial_scale: Factor on the actors' weights before training (biases and spreads keep their start); 1 to 6. 3, with
        selection and ``mode="independent"``, did what repulsion does and more: see the algorithm's page
    :param selection_interval: Every so many rollouts the worst quarter (by the mean return of each particle's last
        ``stats_window_size`` episodes) is replaced by copies of the best; 0: never; the authors' code: 20
    :param selection_noise: Copies are perturbed uniformly by up to this
    :param embedding: Of windows of behaviour, for ``kernel="behavior"``; see :class:`sb3_wng.WNPG`
    :param embedding_horizon: Steps per window
    :param behavior_coef: Size of the repulsion relative to the advantages, per unit of temperature, with
        ``kernel="behavior"``; usually 0.01 to 0.1
    :param algorithm_kwargs: Arguments of the particles' algorithm: ``target_distance``, ``n_critic_updates``, ``batch_size``
        and ``learning_rate`` (both the critics'), ...
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE) instead of action noise
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE (-1: only at the start of a rollout)
    :param rollout_buffer_class: Rollout buffer class to use. If ``None``, it is selected automatically
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param stats_window_size: Number of episodes to average the rollout logs over, and each particle's score
    :param tensorboard_log: Log location for TensorBoard (if ``None``, no logging)
    :param policy_kwargs: Additional arguments to be passed to the policies on creation; ``optimizer_class`` and
        ``optimizer_kwargs`` are the actors' (default Adam) and the critics'
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run
    :param _init_setup_model: Whether or not to build the networks at the creation of the instance
    :raises ValueError: for an algorithm without one gradient per rollout (PPO), environments that cannot be split evenly, and
        arguments out of range
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        algorithm: str | type = "wnpg",
        n_particles: int = 16,
        temperature: float | Schedule = 10.0,
        learning_rate: float | Schedule = 5e-3,
        n_steps: int = 1024,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        mode: str = "svpg",
        kernel: str = "parameters",
        bandwidth: str | float = "authors",
        prior_std: float | None = None,
        normalize_advantage: bool = True,
        n_envs_per_particle: int = 1,
        initial_scale: float = 1.0,
        selection_interval: int = 0,
        selection_noise: float = 0.005,
        embedding: str | BehaviorEmbedding | Callable[[Trajectory], Any] = "state_visitation",
        embedding_horizon: int = 32,
        behavior_coef: float = 0.05,
        algorithm_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        self.mode = mode
        self.kernel = kernel
        self.bandwidth = bandwidth
        self.temperature = temperature
        self.prior_std = prior_std
        self.initial_scale = initial_scale
        self.selection_interval = selection_interval
        self.selection_noise = selection_noise
        self.embedding = embedding
        self.embedding_horizon = embedding_horizon
        self.behavior_coef = behavior_coef
        super().__init__(
            policy,
            env,
            n_particles,
            n_envs_per_particle,
            algorithm,
            algorithm_kwargs,
            normalize_advantage,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
        )
        if _init_setup_model:
            self._setup_model()
            self.check_n_envs()

    def _check_arguments(self) -> None:
        check_population_arguments(self)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.temperature_schedule = make_schedule(self.temperature)
        for particle, actor in zip(self.policy, self.policy.actors, strict=True):
            for parameter in actor:
                if parameter.ndim > 1 and parameter is not getattr(particle, "log_std", None):  # gSDE's is a matrix, too
                    parameter.data.mul_(self.initial_scale)

    @property
    def population_size(self) -> int:
        return 1 if self.mode == "joint" else self.n_particles

    def train(self) -> None:
        """One direction for every particle from the rollout buffer, one step each, then the critics."""
        temperature = self.temperature_schedule(self._current_progress_remaining)
        check_temperature(temperature)  # a schedule's, which was only asked at three points
        is_behavioral = self.kernel == "behavior"
        self.begin_particles(in_order=is_behavioral)
        behavior = self._repel_behavior(temperature) if is_behavioral else None
        update = self._direction(self.gradients(), temperature)
        self.take_steps(update.direction, update.share / temperature)
        if self.selection_interval and self._n_updates % self.selection_interval == 0:
            self._select()
        self._log_population(*(behavior or (update.kernel, update.repulsion_ratio)), temperature)

    def _direction(self, gradients: th.Tensor, temperature: float) -> PopulationDirection:
        """:param gradients: of the particles' returns, shape (n, p)"""
        theta, scores = self.policy.theta, gradients / temperature
        if self.prior_std is not None:
            scores = scores - theta / self.prior_std**2
        mode = "independent" if self.kernel == "behavior" else self.mode
        return population_direction(scores, theta, mode, self.bandwidth)

    def _repel_behavior(self, temperature: float) -> tuple[th.Tensor, float]:
        """Add the repulsion in behaviour space to the particles' advantages; returns the kernel and the repulsion's ratio."""
        rollouts = [rollout_windows(particle.learner, self.embedding_horizon) for particle in self.particles]
        trajectories = [trajectories for _, trajectories in rollouts]
        repulsion = behavior_repulsion(trajectories, make_embedding(self.embedding), self.bandwidth)
        matched = zip(self.particles, rollouts, repulsion.bonuses, strict=True)
        bonuses = [
            windows.scatter(values, len(particle.advantages)).to(particle.advantages)
            for particle, (windows, _), values in matched
        ]
        # The temperature weighs the return against the repulsion, whose own scale depends on the embedding
        ratio = self.behavior_coef * temperature
        advantages = th.cat([particle.advantages for particle in self.particles])
        advantages = advantages[th.isfinite(advantages)]  # one particle's overflow must not reach the others
        unit = advantages.norm() / th.cat(bonuses).norm().clamp_min(1e-12)
        for particle, bonus in zip(self.particles, bonuses, strict=True):
            particle.advantages = particle.advantages + ratio * unit * bonus
        return repulsion.kernel, ratio

    def _select(self) -> None:
        """Replace the worst quarter, of particles that have finished an episode, by perturbed copies of the best."""
        known = np.flatnonzero(np.isfinite(self.mean_returns))
        order = known[np.argsort(self.mean_returns[known])]
        for worst, best in zip(order[: len(order) // 4], order[::-1], strict=False):
            self.particles[worst].become(self.particles[best])
            row = self.policy.theta[worst]
            row += (2 * th.rand_like(row) - 1) * self.selection_noise
            for value in self.policy.optimizer.state.get(self.policy.theta, {}).values():
                if value.ndim == 2:  # Adam's moments
                    value[worst] = value[best]
            self.particle_returns[worst].clear()
            self._is_inherited[self.columns[worst]] = ~np.asarray(self._last_episode_starts)[self.columns[worst]]

    def _log_population(self, kernel: th.Tensor, repulsion_ratio: float, temperature: float) -> None:
        self.log_means()
        if len(kernel) > 1:
            between = kernel[~th.eye(len(kernel), dtype=th.bool, device=kernel.device)]
            self.logger.record("train/kernel_min", between.min().item())
            self.logger.record("train/kernel_mean", between.mean().item())
            self.logger.record("train/kernel_max", between.max().item())
        self.logger.record("train/repulsion_ratio", repulsion_ratio)
        self.logger.record("train/temperature", temperature)
