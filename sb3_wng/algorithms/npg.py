"""Natural policy gradient with the Fisher metric."""

from __future__ import annotations

from typing import Any

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_wng.algorithms.policy_gradient import NaturalPolicyGradient


class NPG(NaturalPolicyGradient):
    """
    Natural Policy Gradient (NPG): the Fisher metric in the loop of :class:`~sb3_wng.WNPG`, and hence its control.

    The step is sqrt(2 target_kl / g^T F^{-1} g) F^{-1} g (the closed-form step size of Kakade 2002), then
    shortened by a line search, which makes it TRPO. ``line_search_max_iter=0`` takes the closed-form step as it is.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy or a class)
    :param env: The environment to learn from (if registered in Gymnasium, can be str)
    :param learning_rate: Learning rate of the critic's Adam; a float or a schedule of the remaining progress (1 to
        0). Usually 3e-4 to 1e-3
    :param n_steps: Steps per environment and rollout, which holds ``n_steps * n_envs`` transitions, usually 1024 or
        2048
    :param batch_size: Minibatch size of the critic's updates
    :param gamma: Discount factor
    :param gae_lambda: Bias-variance trade-off of the generalized advantage estimator
    :param target_kl: Radius of the trust region: largest mean KL divergence between successive policies, **summed**
        over action dimensions (SB3-Contrib's TRPO averages over them: its 0.01 is 0.01 x action dimension here); a float
        or a schedule. A radius that falls to 0 ends noisy steps at the optimum
    :param n_policy_updates: Natural steps per rollout, which share the trust region (each gets ``1/n**2`` of the
        radius)
    :param cg_max_steps: Largest number of conjugate-gradient steps per solve, usually 5 to 25
    :param cg_damping: Damping of the metric, in its own (relative) units; usually 0.01 to 0.3, and up to 10 where rollouts
        of a good policy hardly show some states
    :param adaptive_damping: Adapt the damping by the Levenberg-Marquardt rule from the reduction ratio
    :param line_search_shrinking_factor: Factor in (0, 1) between successive trials of the line search
    :param line_search_max_iter: Trials of the line search; 0 takes the closed-form step unseen
    :param n_critic_updates: Passes of the critic over each rollout
    :param sub_sampling_factor: Estimate the metric on every k-th sample only (gradient and line search keep all);
        4 nearly halves the cost of the policy's part
    :param normalize_advantage: Standardise the advantages over the rollout
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE) instead of action noise
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE (-1: only at the start of a
        rollout)
    :param rollout_buffer_class: Rollout buffer class to use. If ``None``, it is selected automatically
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param stats_window_size: Number of episodes to average the rollout logs over
    :param tensorboard_log: Log location for TensorBoard (if ``None``, no logging)
    :param policy_kwargs: Additional arguments to be passed to the policy on creation
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 1024,
        batch_size: int = 128,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        target_kl: float | Schedule = 0.03,
        n_policy_updates: int = 1,
        cg_max_steps: int = 15,
        cg_damping: float = 0.1,
        adaptive_damping: bool = False,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        n_critic_updates: int = 20,
        sub_sampling_factor: int = 1,
        normalize_advantage: bool = True,
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
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            gamma=gamma,
            gae_lambda=gae_lambda,
            target_kl=target_kl,
            n_policy_updates=n_policy_updates,
            cg_max_steps=cg_max_steps,
            cg_damping=cg_damping,
            adaptive_damping=adaptive_damping,
            line_search_shrinking_factor=line_search_shrinking_factor,
            line_search_max_iter=line_search_max_iter,
            n_critic_updates=n_critic_updates,
            sub_sampling_factor=sub_sampling_factor,
            normalize_advantage=normalize_advantage,
            metric="fisher",
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
            _init_setup_model=_init_setup_model,
        )
