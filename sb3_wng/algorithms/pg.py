"""Plain policy gradient."""

from __future__ import annotations

from typing import Any

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_wng.algorithms.policy_gradient import NaturalPolicyGradient


class PG(NaturalPolicyGradient):
    """
    Policy Gradient (PG): the surrogate without preconditioner, penalty or clipping ("None" in the paper).

    Minibatch passes of Adam over each rollout, as PPO without its clipping: nothing but the learning rate holds the new
    policy near the old one. It is the baseline that shows what a trust region is worth, not a method to prefer.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy or a class)
    :param env: The environment to learn from (if registered in Gymnasium, can be str)
    :param learning_rate: Learning rate of the actor's and the critic's Adam; a float or a schedule. Usually 1e-5 to
        3e-4
    :param n_steps: Steps per environment and rollout, which holds ``n_steps * n_envs`` transitions, usually 1024 or
        2048
    :param batch_size: Minibatch size of the critic's updates
    :param gamma: Discount factor
    :param gae_lambda: Bias-variance trade-off of the generalized advantage estimator
    :param n_policy_updates: Passes of the actor over each rollout
    :param policy_batch_size: Minibatch size of the actor's steps
    :param target_kl: Stop the passes once the KL divergence (summed over action dimensions) exceeds 1.5 times this;
        ``None``: never, as the paper's baseline
    :param n_critic_updates: Passes of the critic over each rollout
    :param normalize_advantage: Standardise the advantages over the rollout
    :param max_grad_norm: Largest norm of the gradient of the actor
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
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        n_policy_updates: int = 10,
        policy_batch_size: int | None = 64,
        target_kl: float | Schedule | None = None,
        n_critic_updates: int = 10,
        normalize_advantage: bool = True,
        max_grad_norm: float = 0.5,
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
            n_policy_updates=n_policy_updates,
            policy_batch_size=policy_batch_size,
            target_kl=target_kl,
            n_critic_updates=n_critic_updates,
            normalize_advantage=normalize_advantage,
            max_grad_norm=max_grad_norm,
            metric="euclidean",
            step_rule="optimizer",
            cg_damping=0.0,
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
