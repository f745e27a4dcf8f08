"""Behaviour-guided Wasserstein natural evolution strategy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_wng.algorithms.evolution import EvolutionStrategy
from sb3_wng.algorithms.evolution_policies import EvolutionPolicy
from sb3_wng.behavior import BehaviorEmbedding, Trajectory


class BGWNES(EvolutionStrategy):
    """
    Behaviour-Guided Wasserstein Natural Evolution Strategy (BGWNES): :class:`WNES`'s direction of :class:`BGES`'s fitness.

    The bonus makes earlier behaviour costly, the metric decides how behaviour may change per step.

    Paper: https://arxiv.org/abs/2010.05380 (Moskovitz, Arbel, Huszar & Gretton, ICLR 2021), Alg. 2; departures as
    of the two.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, LinearPolicy, ToeplitzPolicy,
        ImplicitPolicy or a class)
    :param env: The environment to learn from (if registered in Gymnasium, can be str). Its columns, if it is a VecEnv,
        try candidates at the same time
    :param learning_rate: Learning rate of the policy's optimiser (Adam unless ``policy_kwargs`` has an
        ``optimizer_class``), a float or a schedule of the remaining progress (1 to 0); usually 0.01 to 0.1
    :param n_delta: Antithetic pairs of perturbations per iteration: ``2 * n_delta * n_episodes + 1`` episodes
    :param delta_std: Standard deviation of the perturbations, a float or a schedule; usually 0.02 to 0.2
    :param fitness_shaping: ``"standardize"``: returns of mean 0 and variance 1 over the iteration.
        ``"centered_rank"``: their ranks in [-.5, .5], where some are extreme. ``"utility"``: logarithms of ranks,
        of which the best few decide (NES). ``"none"``: as they are. Bonuses are shaped like the returns
    :param weight_decay: Decoupled from the optimiser, as in AdamW: parameters shrink by ``learning_rate *
        weight_decay`` per iteration
    :param max_grad_norm: Largest norm of the direction handed to the optimiser, in units of sqrt(number of parameters)
        / ``delta_std``, in which ``train/grad_norm`` is logged; usually 0.02 to 0.1. Acts through Adam as well,
        because Adam forgets a constant scale only
    :param natural_coef: 1: the Wasserstein natural gradient, which changes behaviour little for what it gains. 0: the
        gradient. Between them: a mixture (eq. 15, with both parts in the same unit), which is less sensitive to the
        metric's noise. Negative: more of what changes behaviour, for exploration; -1.3 in the released code. At most 1
    :param n_basis: Basis functions of the kernel metric, usually 3 to 10 (the papers: 5). Only ``n_delta`` directions
        are seen per iteration: as many functions as that turn the metric into noise
    :param log_bandwidth: log10 of the kernel's bandwidth in units of the mean squared distance between embeddings;
        usually 0 to 1
    :param damping: Damping of the metric in units of the mean eigenvalue of its low-rank factor, hence without a unit
        of its own; usually 0.01 to 1. (Not ``cg_damping``: the solve is direct)
    :param diagonal_damping: Damp each parameter in proportion to its influence on the behaviour (the released code)
    :param wasserstein_coef: A float or a schedule of the remaining progress (1 to 0): what the Wasserstein distance to
        the behaviour of the last policies counts in the minimised loss: negative repels, positive attracts. The
        candidate's potential, shaped like the returns, times ``-wasserstein_coef`` is added to its shaped return: the
        published mixture (1 - beta) return + beta distance is ``-beta / (1 - beta)``: -1 for 0.5, -3 for 0.75
    :param n_previous: Earlier policies whose behaviour is remembered, one episode each; usually 20 to 200. With few, a
        trap that was left is soon forgotten and attracts again. The papers remember 2
    :param distance: ``"sinkhorn"``: potentials of the debiased Sinkhorn divergence. ``"dual"``: potentials in random
        features, fitted to convergence; smoother
    :param saturation: Distance between behaviours beyond which they count as equally far, in units of the root mean
        square distance between candidates, coordinates standardised; usually 0.1 to 1. ``None``: squared distances in the
        embedding's own units, which the farthest candidates decide (the papers)
    :param embedding: What is called the behaviour of an episode: ``"final_state"`` (the observation that its last step
        returned), ``"reward_to_go"``, ``"action_sequence"``, ``"state_visitation"``, ``"state_sequence"``, or a function of
        one :class:`~sb3_wng.behavior.Trajectory`
    :param embedding_horizon: Steps of an episode that the embedding gets, at most; ``None``: the environment's time
        limit
    :param n_episodes: Episodes per candidate, whose mean return counts
    :param common_random_numbers: Which episodes start from the same seed: ``"pair"``: those of an antithetic pair.
        ``"iteration"``: all of an iteration. ``"none"``: none
    :param normalize_observations: Standardise continuous observations by their running statistics, which the policy
        keeps and which change between iterations only
    :param env_failure: ``"raise"``: an environment that raises or returns numbers that are not finite ends training
        with an error that names iteration and seed. A number: the return of such an episode. An embedding that fails always
        ends it
    :param n_jobs: Processes that run episodes; 1: in this process, on the columns of ``env``; -1: one per core.
        Results do not depend on it
    :param backend: Where processes are with ``n_jobs`` other than 1: ``"loky"`` (this machine) or ``"ray"`` (a
        cluster)
    :param ray_address: Address of the Ray cluster; ``"auto"``: the one this machine belongs to; ``None``: start one
        here
    :param episode_timeout: Seconds after which an episode in another process has failed; ``None``: never
    :param stats_window_size: Number of episodes to average the rollout logs over
    :param tensorboard_log: Log location for TensorBoard (if ``None``, no logging)
    :param policy_kwargs: Additional arguments to be passed to the policy on creation
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators; all of training is a function of it
    :param device: Device (cpu, cuda, ...) of the policy and the update. Small networks act on the CPU in any case
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    """

    def __init__(
        self,
        policy: str | type[EvolutionPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 0.02,
        n_delta: int = 50,
        delta_std: float | Schedule = 0.1,
        fitness_shaping: str = "standardize",
        weight_decay: float = 0.0,
        max_grad_norm: float | None = None,
        natural_coef: float = 0.5,
        n_basis: int = 5,
        log_bandwidth: float = 1.0,
        damping: float = 0.1,
        diagonal_damping: bool = False,
        wasserstein_coef: float | Schedule = -0.5,
        n_previous: int = 100,
        distance: str = "sinkhorn",
        saturation: float | None = 0.3,
        embedding: str | BehaviorEmbedding | Callable[[Trajectory], Any] = "final_state",
        embedding_horizon: int | None = None,
        n_episodes: int = 1,
        common_random_numbers: str = "pair",
        normalize_observations: bool = False,
        env_failure: str | float = "raise",
        n_jobs: int = 1,
        backend: str = "loky",
        ray_address: str | None = None,
        episode_timeout: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "cpu",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_delta=n_delta,
            delta_std=delta_std,
            fitness_shaping=fitness_shaping,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
            natural_coef=natural_coef,
            n_basis=n_basis,
            log_bandwidth=log_bandwidth,
            damping=damping,
            diagonal_damping=diagonal_damping,
            wasserstein_coef=wasserstein_coef,
            n_previous=n_previous,
            distance=distance,
            saturation=saturation,
            embedding=embedding,
            embedding_horizon=embedding_horizon,
            n_episodes=n_episodes,
            common_random_numbers=common_random_numbers,
            normalize_observations=normalize_observations,
            env_failure=env_failure,
            n_jobs=n_jobs,
            backend=backend,
            ray_address=ray_address,
            episode_timeout=episode_timeout,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )
