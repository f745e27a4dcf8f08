"""Novelty and reward seeking evolution strategy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_wng.algorithms.evolution import EvolutionStrategy
from sb3_wng.algorithms.evolution_policies import EvolutionPolicy
from sb3_wng.behavior import BehaviorEmbedding, Trajectory


class NSRES(EvolutionStrategy):
    """
    Novelty Search with Reward Evolution Strategy (NSR-ES): half return, half distance to all earlier behaviour.

    Novelty is the mean distance to the nearest behaviours in an archive, which every updated parent joins.

    Paper: https://arxiv.org/abs/1712.06560 (Conti et al., NeurIPS 2018), Alg. 1.
    Departures by default: one parent instead of five, standardised values instead of centred ranks.

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
    :param novelty_weight: Weight of novelty against return, both shaped alike: 0.5 is NSR-ES, 1 is NS-ES
    :param n_neighbors: Nearest behaviours of the archive whose mean distance is a candidate's novelty
    :param n_parents: Parents that take turns, chosen in proportion to their novelty; the policy is the one updated
        last. The original has 5, which share the budget
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
        novelty_weight: float = 0.5,
        n_neighbors: int = 10,
        n_parents: int = 1,
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
            novelty_weight=novelty_weight,
            n_neighbors=n_neighbors,
            n_parents=n_parents,
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
