"""Behaviour-guided policy gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_wng.algorithms.policy_gradient import NaturalPolicyGradient
from sb3_wng.behavior import BehaviorEmbedding, Trajectory


class BGPG(NaturalPolicyGradient):
    """
    Behaviour-guided Policy Gradient (BGPG): a penalty on how far behaviour moves, instead of a trust region or clipping.

    Minibatch passes of Adam over each rollout, as PPO, on the surrogate less ``wasserstein_coef`` times a distance from the
    policy that collected the rollout. By default that is the squared Wasserstein-2 distance of the action laws, which has a
    closed form and costs next to nothing. ``reference`` replaces the collecting policy by behaviour of your choice, to be
    attracted to (coefficient > 0) or repelled from (< 0).

    Papers: https://arxiv.org/abs/1906.04349 (Pacchiano et al., Learning to Score Behaviors for Guided Policy
    Optimization) and https://arxiv.org/abs/2010.05380, eq. 4. ``distance="kl"`` is eq. 3's penalty, the control.

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
    :param target_kl: Stop the passes once the KL divergence (summed over action dimensions) exceeds 1.5 times this, a
        float or a schedule; ``None``: never. A guard for penalties too weak to hold the policy
    :param wasserstein_coef: Coefficient of the distance in the minimised loss; the distance is in units of the policy's
        spread (of both samples' total variance for references and trajectories). > 0 attracts, < 0 repels, 0 is PG.
        Usually 0.1 to 10
    :param distance: ``"closed_form"``: W2^2 of the action laws at each state (discrete actions: on their complete graph, as
        WNPG's metric). ``"total_variation"``: W2^2 of discrete actions under the 0-1 cost, of first order in their change.
        ``"sinkhorn"``, ``"dual"``: debiased W2^2 between samples of behaviour, by Sinkhorn's iteration or by test functions
        that are kept from update to update. ``"kl"``: the KL divergence of the action laws
    :param adaptive_coef: Raise or lower the coefficient (> 0) after each rollout so that the update moves behaviour by
        ``target_distance``, or a ``reference`` gets that near; one that cannot be reached drives it to 10,000
    :param target_distance: Distance per rollout that an adaptive coefficient aims at, in the unit above; usually 0.005 to 0.1,
        a float or a schedule
    :param embedding: What is compared. ``"actions"`` (and ``"actions_and_values"``, ten actions per state): of single
        states. ``"action_sequence"``, ``"final_state"``, ``"reward_to_go"``, ``"state_visitation"``,
        ``"state_sequence"`` or a function of one :class:`~sb3_wng.behavior.Trajectory`: of windows of the rollout, with
        ``"sinkhorn"`` or ``"dual"``; the distance then is from the rollout before (or the reference)
    :param embedding_horizon: Steps per window of a trajectory
    :param entropic_reg: Regularisation of ``"sinkhorn"`` and ``"dual"``, in units of the mean cost; usually 0.05 to 0.5
    :param reference: Behaviour to compare with instead of the collecting policy: points of the embedding's space, shape
        (m, d), :class:`~sb3_wng.behavior.Trajectories`, a list of :class:`~sb3_wng.behavior.Trajectory`, a trained SB3
        model with an environment, or a pair (model, environment). Wants ``"sinkhorn"`` or ``"dual"``
    :param std_weight: Weight of the spread in the closed form; 1 is the Wasserstein distance, 4 slows the spread's collapse
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
        wasserstein_coef: float = 1.0,
        distance: str = "closed_form",
        adaptive_coef: bool = False,
        target_distance: float | Schedule = 0.02,
        embedding: str | BehaviorEmbedding | Callable[[Trajectory], Any] = "actions",
        embedding_horizon: int = 32,
        entropic_reg: float = 0.2,
        reference: Any = None,
        std_weight: float = 1.0,
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
            wasserstein_coef=wasserstein_coef,
            distance=distance,
            adaptive_coef=adaptive_coef,
            target_distance=target_distance,
            embedding=embedding,
            embedding_horizon=embedding_horizon,
            entropic_reg=entropic_reg,
            reference=reference,
            std_weight=std_weight,
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
