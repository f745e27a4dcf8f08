"""Several policies that attract or repel each other, or a given behaviour, by the Wasserstein distance of their behaviour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import nn

from sb3_wng.algorithms.arguments import check_integers
from sb3_wng.algorithms.guidance import embed_reference
from sb3_wng.algorithms.penalty import SampleTransport, centered, check_dimensions
from sb3_wng.algorithms.rollouts import check_finite_rollout, rollout_in_order, rollout_windows
from sb3_wng.behavior import BehaviorEmbedding, Trajectory, make_embedding, spread
from sb3_wng.population.arguments import (
    Coefficient,
    check_wasserstein_arguments,
    coefficient_matrix,
    reference_coefficient,
)
from sb3_wng.population.population import Population
from sb3_wng.population.rollouts import Timeout


class WassersteinPopulation(Population):
    r"""
    Policies that learn one task together and keep apart, or close, in behaviour.

    Policy i minimises its own algorithm's loss plus :math:`\frac{1}{k-1} \sum_{j \neq i} c_{ij} W(q_i, q_j)`, where
    :math:`q_i` is the law of its windows' embeddings and c is ``wasserstein_coef``: negative repels, positive attracts. The
    gradient is a score function's: what a window adds to the distance is its potential u in the transport to the other
    policy's windows, and is paid like a reward. Each of its steps costs :math:`c_{ij}\,\rho\,(u - \bar u) / \ell` before
    advantages are estimated, so that critic and discounting give credit to the actions that led there. :math:`\rho` is the
    root mean square of the policy's rewards in the rollout, and :math:`\ell` the root of the total variance of both
    policies' points together (the variance itself for ``cost="sqeuclidean"``). A coefficient of -0.1 therefore gives up a
    tenth of the reward for one such length, whatever the unit of rewards and embedding, and as :math:`\ell` grows with the
    distance, policies that are apart already are left to the return.

    Paper: https://arxiv.org/abs/1802.03976 (Abdullah, Pacchiano & Draief, Reinforcement learning with Wasserstein distance
    regularisation, with applications to multipolicy learning, 2018), whose alpha is minus this coefficient.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy or a class)
    :param env: The environment to learn from. An id makes ``n_policies * n_envs_per_policy`` of it; a VecEnv's columns are
        split evenly, in order. :func:`sb3_wng.envs.make_batched` environments are by far the fastest
    :param algorithm: ``"pg"`` (REINFORCE: discounted returns-to-go), ``"pg_linear"`` (less a linear baseline), ``"a2c"``
        (advantages by GAE), ``"npg"``, ``"wnpg"``, or one of these classes
    :param n_policies: Number of policies k
    :param wasserstein_coef: A number, a matrix (k, k) whose row i is what policy i feels (the diagonal is ignored), or a
        function of the remaining progress (1 to 0) that returns either, such as
        :class:`sb3_wng.population.AnnealedCoefficient`. Usually -0.03 to -1; 0 is independent training
    :param embedding: What is compared: ``"state_visitation"``, ``"state_sequence"`` (the path), ``"final_state"``,
        ``"action_sequence"``, ``"reward_to_go"``, or a function of one :class:`~sb3_wng.behavior.Trajectory`
    :param embedding_horizon: Steps per window; windows end with their episode, so that short episodes are compared whole
    :param distance: ``"sinkhorn"`` (the samples' own potential) or ``"dual"`` (test functions in random features, kept from
        rollout to rollout); both debiased
    :param cost: ``"euclidean"`` (W1, the source's) or ``"sqeuclidean"`` (W2^2, whose pull grows with the distance)
    :param entropic_reg: Regularisation of the distance, in units of the mean cost; usually 0.05 to 0.5
    :param reference: A behaviour that does not change and that every policy is compared with, too: points of the embedding's
        space (m, d), :class:`~sb3_wng.behavior.Trajectories`, a list of :class:`~sb3_wng.behavior.Trajectory`, a trained SB3
        model with an environment, or a pair (model, environment)
    :param reference_coef: Coefficient of the distance from the reference, a number or a schedule
    :param learning_rate: Of the actors' Adam (not ``"npg"`` and ``"wnpg"``, which take their own steps); a float or a
        schedule. The critics' is in ``algorithm_kwargs``
    :param n_steps: Steps per environment and rollout
    :param gamma: Discount factor
    :param gae_lambda: Bias-variance trade-off of the generalized advantage estimator (``"pg"`` and ``"pg_linear"`` have none)
    :param normalize_advantage: Standardise the advantages over each policy's rollout
    :param n_envs_per_policy: Environments of each policy where ``env`` is an id
    :param algorithm_kwargs: Arguments of the policies' algorithm: ``target_distance``, ``n_critic_updates``, ``batch_size``
        and ``learning_rate`` (both the critics'), ...
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE) instead of action noise
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE (-1: only at the start of a rollout)
    :param rollout_buffer_class: Rollout buffer class to use. If ``None``, it is selected automatically
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param stats_window_size: Number of episodes to average the rollout logs over, and each policy's score
    :param tensorboard_log: Log location for TensorBoard (if ``None``, no logging)
    :param policy_kwargs: Additional arguments to be passed to the policies on creation; ``optimizer_class`` and
        ``optimizer_kwargs`` are the actors' (default Adam) and the critics'
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run
    :param _init_setup_model: Whether or not to build the networks at the creation of the instance
    :raises ValueError: for arguments out of range, environments that cannot be split evenly, a reference of another space, and
        one policy without a reference
    """

    size_arguments = ("n_policies", "n_envs_per_policy")
    own_log_names = ("train/wasserstein_distance",)

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        algorithm: str | type = "wnpg",
        n_policies: int = 2,
        wasserstein_coef: Coefficient = -0.1,
        embedding: str | BehaviorEmbedding | Callable[[Trajectory], Any] = "state_visitation",
        embedding_horizon: int = 32,
        distance: str = "sinkhorn",
        cost: str = "euclidean",
        entropic_reg: float = 0.2,
        reference: Any = None,
        reference_coef: float | Schedule = 1.0,
        learning_rate: float | Schedule = 5e-3,
        n_steps: int = 1024,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        normalize_advantage: bool = True,
        n_envs_per_policy: int = 1,
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
        self.n_policies = n_policies
        self.n_envs_per_policy = n_envs_per_policy
        check_integers(self, n_policies=1, n_envs_per_policy=1)
        self.wasserstein_coef = wasserstein_coef
        self.embedding = embedding
        self.embedding_horizon = embedding_horizon
        self.distance = distance
        self.cost = cost
        self.entropic_reg = entropic_reg
        self.reference = reference
        self.reference_coef = reference_coef
        super().__init__(
            policy,
            env,
            n_policies,
            n_envs_per_policy,
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
        check_wasserstein_arguments(self)
        if self.reference is not None:
            self.reference = embed_reference(self)  # type: ignore[arg-type]  # has what is read

    def _setup_model(self) -> None:
        super()._setup_model()
        others = ["reference"] if self.reference is not None else []
        self.transports = Transports(
            {
                f"{i}-{j}": SampleTransport(self.distance, self.entropic_reg, self.cost)
                for i in range(self.n_policies)
                for j in [*range(self.n_policies), *others]
                if i != j
            }
        )

    def _finish_rollout(self, buffer: RolloutBuffer, timeouts: list[Timeout], dones: NDArray[np.bool_]) -> None:
        check_finite_rollout(buffer)  # before anything is made of it
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        progress = self._current_progress_remaining
        coefficients = coefficient_matrix(self.wasserstein_coef, progress, self.n_policies)
        to_reference = 0.0 if self.reference is None else reference_coefficient(self.reference_coef, progress)
        self._interact(buffer, coefficients, to_reference)
        self._log_coefficients(coefficients, to_reference)
        super()._finish_rollout(buffer, timeouts, dones)

    def _interact(self, buffer: RolloutBuffer, coefficients: NDArray[np.float64], to_reference: float) -> None:
        """Charge the steps of the rollout for what they add to the distances.

        :param coefficients: between policies, shape (k, k)
        """
        embedding = make_embedding(self.embedding)
        # A reference was seen without this environment's normalisation, or through another one
        normalizer = self.get_vec_normalize_env() if self.reference is not None else None
        rollouts = []
        for particle, share in zip(self.particles, self.shares(), strict=True):
            rollout_in_order(share)  # flattens it
            particle.learner.rollout_buffer = share
            rollouts.append(rollout_windows(particle.learner, self.embedding_horizon, normalizer, self.reference is not None))
        points = [embedding(trajectories).detach().float() for _, trajectories in rollouts]
        self._log_distances(points)
        for i, (columns, (windows, _)) in enumerate(zip(self.columns, rollouts, strict=True)):
            others: list[tuple[str, th.Tensor, float]] = [
                (f"{i}-{j}", points[j], coefficients[i, j] / (self.n_policies - 1)) for j in range(self.n_policies) if j != i
            ]
            if self.reference is not None:
                others.append((f"{i}-reference", th.as_tensor(self.reference), to_reference))
            felt = [(name, there, coefficient) for name, there, coefficient in others if coefficient != 0]
            if felt:
                signal = th.stack([c * self._signal(name, points[i], y) for name, y, c in felt]).sum(dim=0)
                rewards = buffer.rewards[:, columns]
                costs = windows.scatter(signal, rewards.size).cpu().numpy().reshape(rewards.shape[::-1]).T
                buffer.rewards[:, columns] = rewards - reward_unit(rewards) * costs

    def train(self) -> None:
        """One step for every policy from the rollout buffer, then the critics."""
        self.begin_particles(in_order=True)  # sums then have an order that no random generator decides
        self.take_steps(self.gradients())
        self.log_means()

    def _signal(self, name: str, x: th.Tensor, y: th.Tensor) -> th.Tensor:
        """What each point of x (n, d) is worth for the distance from y (m, d), without unit and with mean 0; shape (n,)."""
        potential = self._transport(name).potential(x, y)
        unit = spread(th.cat([x, y]))
        return centered(potential) / max(unit if self.cost == "sqeuclidean" else unit**0.5, 1e-12)

    def _transport(self, name: str) -> SampleTransport:
        transport = self.transports[name]
        assert isinstance(transport, SampleTransport)
        return transport

    def _log_distances(self, points: Sequence[th.Tensor]) -> None:
        distances = {}
        for i, j in combinations(range(self.n_policies), 2):
            distances[i, j] = self._transport(f"{i}-{j}").value(points[i], points[j]).item()
            self.logger.record(f"particles/wasserstein_distance_{i:02d}_{j:02d}", distances[i, j], exclude="stdout")
        if distances:
            self.logger.record("train/wasserstein_distance", float(np.mean(list(distances.values()))))
            self.logger.record("train/wasserstein_distance_min", min(distances.values()))
        if self.reference is not None:
            target = th.as_tensor(self.reference)
            check_dimensions(points[0].shape[1], target.shape[1])
            values = [self._transport(f"{i}-reference").value(part, target).item() for i, part in enumerate(points)]
            self.logger.record("train/reference_distance", float(np.mean(values)))

    def _log_coefficients(self, coefficients: NDArray[np.float64], to_reference: float) -> None:
        if self.n_policies > 1:
            pairs = self.n_policies * (self.n_policies - 1)
            self.logger.record("train/wasserstein_coef", coefficients.sum() / pairs)
        if self.reference is not None:
            self.logger.record("train/reference_coef", to_reference)
        if self.distance == "dual":
            n_fallbacks = sum(self._transport(name).n_fallbacks.item() for name in self.transports)
            self.logger.record("train/n_dual_fallbacks", n_fallbacks)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, variables = super()._get_torch_save_params()
        return [*names, "transports"], variables


class Transports(nn.ModuleDict):
    """The transport of every pair, by name; those that a file lacks, where ``load()`` was given a reference, stay new."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for key in [key for key in state_dict if key.removeprefix(prefix).partition(".")[0] not in self]:
            del state_dict[key]
        for name, transport in self.items():
            if f"{prefix}{name}.n_fallbacks" not in state_dict:
                state_dict.update(transport.state_dict(prefix=f"{prefix}{name}."))
        super()._load_from_state_dict(state_dict, prefix, *args)


def reward_unit(rewards: NDArray[np.float32]) -> float:
    """Root mean square, which tasks with a constant reward have, too; 1 where all rewards are zero."""
    return float(np.sqrt(np.mean(np.square(rewards, dtype=np.float64)))) or 1.0
