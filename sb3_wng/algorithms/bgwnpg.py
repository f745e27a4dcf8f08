"""Behaviour-guided Wasserstein natural policy gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_wng.algorithms.policy_gradient import NaturalPolicyGradient
from sb3_wng.behavior import BehaviorEmbedding, Trajectory


class BGWNPG(NaturalPolicyGradient):
    """
    Behaviour-guided Wasserstein Natural Policy Gradient (BGWNPG): WNPG and a Wasserstein penalty.

    After each rollout the actor takes WNPG's step, and then ``n_penalized_epochs`` epochs of Adam on minibatches of the
    surrogate less ``wasserstein_coef`` times the distance from the policy that collected the rollout, or from a
    ``reference``: the natural step finds the direction, the epochs use what is left of the rollout, the penalty keeps them
    near. (In a single step per rollout a penalty does nothing: its gradient is zero where the policy has not moved.)
    With ``wasserstein_coef=0`` there are no epochs, and it is WNPG.

    Paper: https://arxiv.org/abs/2010.05380 (Moskovitz, Arbel, Huszar & Gretton, ICLR 2021), Alg. 1 and eq. 4.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy or a class)
    :param env: The environment to learn from (if registered in Gymnasium, can be str)
    :param learning_rate: Learning rate of the critic's Adam; a float or a schedule of the remaining progress (1 to
        0). Usually 3e-4 to 1e-3
    :param n_steps: Steps per environment and rollout, which holds ``n_steps * n_envs`` transitions, usually 1024 or
        2048
    :param batch_size: Minibatch size of the critic's updates
    :param gamma: Discount factor
    :param gae_lambda: Bias-variance trade-off of the generalized advantage estimator
    :param metric: ``"closed_form"``: the Wasserstein metric of the action law at each state (default). ``"kernel"``:
        the papers' estimator from samples of behaviour, see ``embedding``. ``"combined"``: the sum of the two.
        ``"fisher"``: the control, NPG
    :param step_rule: ``"trust_region"`` (default): the longest step within the radius, by line search.
        ``"fixed_rate"``: ``step_size`` times the direction in absolute units; wants ``normalize_advantage=False`` and
        a ``target_kl`` as cap. ``"optimizer"``: the direction goes through ``policy.optimizer`` in place of the
        gradient, as published
    :param target_distance: Radius of the trust region: largest mean squared Wasserstein distance W2^2 of successive
        policies, in units of the policy's spread (the total variance of its actions). 0.02 corresponds to a KL of
        0.01 per action dimension; usually 0.005 to 0.1, a float or a schedule. A radius that falls to 0 ends noisy steps at
        the optimum
    :param target_kl: Cap on the KL divergence per rollout, **summed** over action dimensions (SB3-Contrib's TRPO
        averages over them), on top of the radius: a step that is short in W2 may still change everything for a
        dimension whose spread is small. 0.01 x action dimension matches the default radius; ``None`` removes the cap.
        A float or a schedule. It is the radius itself with ``metric="fisher"``; the optimiser rule ends its passes at
        1.5 times it
    :param step_size: Rate of ``step_rule="fixed_rate"``, a float or a schedule; usually 0.05 to 0.4
    :param n_policy_updates: Natural steps per rollout, which share the trust region (each gets ``1/n**2`` of the
        radius)
    :param policy_batch_size: Minibatch size of the penalised epochs, and of the steps of the other two rules (the trust
        region's is always on the whole rollout); ``None``: the whole rollout
    :param cg_max_steps: Largest number of conjugate-gradient steps per solve, usually 5 to 25
    :param cg_damping: Damping of the metric: relative to the policy's spread in a trust region, absolute (squared units of
        actions) with the other step rules; usually 0.01 to 0.3, and up to 10 where rollouts of a good policy hardly show some
        states
    :param adaptive_damping: Adapt the damping by the Levenberg-Marquardt rule from the reduction ratio, after every step
        (``True``) or every so many steps (an integer)
    :param diagonal_damping: Damp each parameter of a kernel metric in proportion to its influence on the behaviour
    :param line_search_shrinking_factor: Factor in (0, 1) between successive trials of the line search
    :param line_search_max_iter: Trials of the line search; 0 takes the closed-form step unseen
    :param n_critic_updates: Passes of the critic over each rollout
    :param std_weight: Weight of the spread in the metric. 1 is the Wasserstein metric; 2 weighs it as Fisher's does, which
        is better where exploration must last, and 4 slows its collapse further: departures without a Wasserstein meaning
    :param n_basis: Basis functions of the kernel metric, usually 50 or more; 10 for embeddings of windows, which are fewer
    :param log_bandwidth: log10 of the kernel's bandwidth in units of the mean squared distance between samples;
        usually 0 to 1
    :param embedding: What the kernel metric calls behaviour and the penalty compares. ``"actions"``: the action, given the
        state; ``"action_sequence"``, ``"final_state"``, ``"reward_to_go"``, ``"state_visitation"``, ``"state_sequence"`` or a
        function of one :class:`~sb3_wng.behavior.Trajectory`: windows of the rollout; ``"actions_and_values"``: the released
        code's
    :param embedding_horizon: Steps per window of a trajectory; a rollout should hold twice ``n_basis`` windows
    :param sub_sampling_factor: Estimate the metric (a kernel metric: only what measures its step) on every k-th sample;
        gradient and line search keep all. 4 nearly halves the cost of the policy's part
    :param wasserstein_coef: Coefficient of the distance in the minimised loss; the distance is in units of the policy's
        spread (of both samples' total variance for references and trajectories). > 0 attracts, < 0 repels, 0 is WNPG.
        Usually 0.1 to 10
    :param distance: ``"closed_form"``: W2^2 of the action laws at each state (discrete actions: on their complete graph, as
        WNPG's metric). ``"total_variation"``: W2^2 of discrete actions under the 0-1 cost, of first order in their change.
        ``"sinkhorn"``, ``"dual"``: debiased W2^2 between samples of behaviour, by Sinkhorn's iteration or by test functions
        that are kept from update to update. ``"kl"``: the KL divergence of the action laws
    :param adaptive_coef: Raise or lower the coefficient (> 0) after each rollout so that the update moves behaviour by
        ``target_distance``, or a ``reference`` gets that near; one that cannot be reached drives it to 10,000
    :param entropic_reg: Regularisation of ``"sinkhorn"`` and ``"dual"``, in units of the mean cost; usually 0.05 to 0.5
    :param reference: Behaviour to compare with instead of the collecting policy: points of the embedding's space, shape
        (m, d), :class:`~sb3_wng.behavior.Trajectories`, a list of :class:`~sb3_wng.behavior.Trajectory`, a trained SB3
        model with an environment, or a pair (model, environment). Wants ``"sinkhorn"`` or ``"dual"``
    :param n_penalized_epochs: Epochs of Adam on the penalised surrogate after the natural step; stopped early as soon as KL
        exceeds 1.5 times ``target_kl``
    :param actor_learning_rate: Learning rate of these epochs (and of ``step_rule="optimizer"``), a float or a schedule;
        usually 1e-4 to 3e-4. ``None``: ``learning_rate``
    :param normalize_advantage: Standardise the advantages over the rollout
    :param max_grad_norm: Largest norm of a gradient of the penalised epochs, and of a direction handed to the optimiser
        (``step_rule="optimizer"``)
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
        metric: str = "closed_form",
        step_rule: str = "trust_region",
        target_distance: float | Schedule = 0.02,
        target_kl: float | Schedule | None = 0.03,
        step_size: float | Schedule = 0.1,
        n_policy_updates: int = 1,
        policy_batch_size: int | None = 64,
        cg_max_steps: int = 15,
        cg_damping: float = 0.1,
        adaptive_damping: bool | int = False,
        diagonal_damping: bool = False,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        n_critic_updates: int = 20,
        std_weight: float = 1.0,
        n_basis: int = 50,
        log_bandwidth: float = 1.0,
        embedding: str | BehaviorEmbedding | Callable[[Trajectory], Any] = "actions",
        embedding_horizon: int = 32,
        sub_sampling_factor: int = 1,
        wasserstein_coef: float = 1.0,
        distance: str = "closed_form",
        adaptive_coef: bool = False,
        entropic_reg: float = 0.2,
        reference: Any = None,
        n_penalized_epochs: int = 10,
        actor_learning_rate: float | Schedule | None = 3e-4,
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
            metric=metric,
            step_rule=step_rule,
            target_distance=target_distance,
            target_kl=target_kl,
            step_size=step_size,
            n_policy_updates=n_policy_updates,
            policy_batch_size=policy_batch_size,
            cg_max_steps=cg_max_steps,
            cg_damping=cg_damping,
            adaptive_damping=adaptive_damping,
            diagonal_damping=diagonal_damping,
            line_search_shrinking_factor=line_search_shrinking_factor,
            line_search_max_iter=line_search_max_iter,
            n_critic_updates=n_critic_updates,
            std_weight=std_weight,
            n_basis=n_basis,
            log_bandwidth=log_bandwidth,
            embedding=embedding,
            embedding_horizon=embedding_horizon,
            sub_sampling_factor=sub_sampling_factor,
            wasserstein_coef=wasserstein_coef,
            distance=distance,
            adaptive_coef=adaptive_coef,
            entropic_reg=entropic_reg,
            reference=reference,
            n_penalized_epochs=n_penalized_epochs,
            actor_learning_rate=actor_learning_rate,
            normalize_advantage=normalize_advantage,
            max_grad_norm=max_grad_norm,
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
