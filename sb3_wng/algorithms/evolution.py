"""The one training loop of every evolution strategy here; named algorithms fill its slots."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import safe_mean
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from sb3_wng.algorithms.arguments import check_saved_class, make_schedule
from sb3_wng.algorithms.evaluation import Candidate, Evaluator, Generation, Outcome, WorkerLostError, noise, stack_embeddings
from sb3_wng.algorithms.evaluators import make_evaluator
from sb3_wng.algorithms.evolution_arguments import SLOTS, check_evolution_arguments, check_saved_slots
from sb3_wng.algorithms.evolution_policies import SPECIAL_POLICIES, EvolutionPolicy
from sb3_wng.algorithms.meta_population import MetaPopulation
from sb3_wng.algorithms.search_direction import antithetic_gradient, clip_direction, natural_direction, shape_fitness
from sb3_wng.algorithms.step_counter import StepCounter, with_progress_bar
from sb3_wng.algorithms.vec_env_evaluator import EnvironmentRaised, VecEnvEvaluator
from sb3_wng.behavior import BehaviorEmbedding, Trajectory
from sb3_wng.behavior.bonuses import NoveltyBonus, WassersteinBonus
from sb3_wng.geometry import BehaviorSample, Perturbation
from sb3_wng.optim import KernelWassersteinMetric, hold_parameters

SelfEvolutionStrategy = TypeVar("SelfEvolutionStrategy", bound="EvolutionStrategy")


class EvolutionStrategy(BaseAlgorithm):
    """Evolution strategy with a metric and behaviour bonuses as slots.

    Each iteration tries ``n_delta`` antithetic pairs of perturbed parameters and the parameters themselves, turns returns
    and bonuses into fitness, and hands the direction that it estimates to the policy's optimiser. All randomness is a
    function of the seed and the iteration. Use the named subclasses; their docstrings explain the arguments.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": EvolutionPolicy,
        "CnnPolicy": EvolutionPolicy,
        "MultiInputPolicy": EvolutionPolicy,
        **SPECIAL_POLICIES,
    }
    policy: EvolutionPolicy

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
        natural_coef: float = 0.0,
        n_basis: int = 5,
        log_bandwidth: float = 1.0,
        damping: float = 0.1,
        diagonal_damping: bool = False,
        wasserstein_coef: float | Schedule = 0.0,
        n_previous: int = 100,
        distance: str = "sinkhorn",
        saturation: float | None = 0.3,
        novelty_weight: float = 0.0,
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
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
        )
        self.class_names: list[str] = []  # load() fills in the file's
        self.n_delta = n_delta
        self.delta_std = delta_std
        self.fitness_shaping = fitness_shaping
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self.natural_coef = natural_coef
        self.n_basis = n_basis
        self.log_bandwidth = log_bandwidth
        self.damping = damping
        self.diagonal_damping = diagonal_damping
        self.wasserstein_coef = wasserstein_coef
        self.n_previous = n_previous
        self.distance = distance
        self.saturation = saturation
        self.novelty_weight = novelty_weight
        self.n_neighbors = n_neighbors
        self.n_parents = n_parents
        self.embedding = embedding
        self.embedding_horizon = embedding_horizon
        self.n_episodes = n_episodes
        self.common_random_numbers = common_random_numbers
        self.normalize_observations = normalize_observations
        self.env_failure = env_failure
        self.n_jobs = n_jobs
        self.backend = backend
        self.ray_address = ray_address
        self.episode_timeout = episode_timeout
        self._root_seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        check_saved_class(self)
        check_evolution_arguments(self)  # here and not above: load() gives arguments, too
        self._setup_lr_schedule()
        self.delta_std_schedule = make_schedule(self.delta_std)
        self.set_random_seed(self.seed)
        self.policy = self._make_policy()
        if self.natural_coef != 0:
            self.kernel_metric = KernelWassersteinMetric(self.n_basis, self.log_bandwidth, seed=self._root_seed)
        self.wasserstein_coef_schedule = make_schedule(self.wasserstein_coef)
        if self.wasserstein_coef != 0:
            self.wasserstein_bonus = WassersteinBonus(self.n_previous, self.distance, saturation=self.saturation)
        if self.novelty_weight > 0:
            self.novelty_bonus = NoveltyBonus(self.n_neighbors)
        if self.n_parents > 1:
            self.parents = MetaPopulation([self.policy, *(self._make_policy() for _ in range(self.n_parents - 1))])

    def _make_policy(self) -> EvolutionPolicy:
        arguments = {"normalize_observations": self.normalize_observations, **self.policy_kwargs}
        policy = self.policy_class(self.observation_space, self.action_space, self.lr_schedule, **arguments)
        assert isinstance(policy, EvolutionPolicy)
        return policy.to(self.device)

    @property
    def uses_embedding(self) -> bool:
        """Whether episodes are embedded at all."""
        return self.natural_coef != 0 or self.wasserstein_coef != 0 or self.novelty_weight > 0

    def learn(
        self: SelfEvolutionStrategy,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfEvolutionStrategy:
        """As every SB3 algorithm's: ends with the first iteration that reaches ``total_timesteps``.

        Every step of every counted episode is one timestep and one call of the callbacks, at once on the VecEnv's columns,
        and as many steps at once when an episode arrives from a worker process. ``log_interval`` counts iterations;
        ``tb_log_name`` defaults to the class name. A callback that returns ``False`` ends training at that step; the
        iteration then changes nothing.

        :raises RuntimeError: for an environment that raises or returns numbers that are not finite, naming iteration and
            seed, unless ``env_failure`` is a number
        """
        name = tb_log_name or type(self).__name__
        callback = with_progress_bar(callback) if progress_bar else callback
        total_timesteps, callback = self._setup_learn(total_timesteps, callback, reset_num_timesteps, name)
        callback.on_training_start(locals(), globals())
        counter = StepCounter(self, callback)
        evaluator = make_evaluator(self, counter)
        try:
            while self.num_timesteps < total_timesteps:
                self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
                if not self._iterate(evaluator, counter, callback):
                    break
                if log_interval is not None and self._n_updates % log_interval == 0:
                    self.dump_logs()
        finally:
            evaluator.close()
        callback.on_training_end()
        return self

    def _iterate(self, evaluator: Evaluator, counter: StepCounter, callback: BaseCallback) -> bool:
        """One iteration; ``False`` if a callback ended it."""
        if self.n_parents > 1:
            parent = self.parents.choose(self.novelty_bonus, np.random.default_rng((self._root_seed, self._n_updates, 2)))
            self.parents.check_out(parent, self.policy)
        embeddings = None
        try:
            callback.on_rollout_start()  # may freeze or load parameters
            generation = self._generation()
            outcomes = self._evaluate(evaluator, generation, counter)
            if outcomes is not None:
                callback.on_rollout_end()
                embeddings = self._update(generation, outcomes)
        finally:  # an error or an interruption costs no parent
            if embeddings is None and self.n_parents > 1:
                self.parents.put_back(self.policy)
        if embeddings is not None and self.n_parents > 1:
            self.parents.check_in(parent, self.policy, embeddings[-1:])
        return embeddings is not None

    def _generation(self) -> Generation:
        candidates = [
            Candidate(pair, sign, self._episode_seed(pair, sign, episode))
            for pair in range(self.n_delta)
            for sign in (1, -1)
            for episode in range(self.n_episodes)
        ]
        candidates.append(Candidate(self.n_delta, 0, self._episode_seed(self.n_delta, 0, 0)))
        delta_std = self.delta_std_schedule(self._current_progress_remaining)
        if not 0 < delta_std < np.inf:
            raise ValueError(f"delta_std must stay > 0, its schedule gives {delta_std}: let it end at a small number")
        return Generation(
            self.policy.parameters_to_vector().copy(),
            self.policy.frozen,
            delta_std,
            (self._root_seed, self._n_updates, 0),
            self.policy.normalizer.statistics(),
            candidates,
        )

    def _episode_seed(self, pair: int, sign: int, episode: int) -> int:
        shared = {"pair": (pair, 0), "iteration": (0, 0), "none": (pair, 1 + sign)}[self.common_random_numbers]
        sequence = np.random.SeedSequence((self._root_seed, self._n_updates, 1, *shared, episode))
        return int(sequence.generate_state(1)[0] >> 1)  # 31 bits: some environments want a signed number

    def _evaluate(self, evaluator: Evaluator, generation: Generation, counter: StepCounter) -> list[Outcome] | None:
        """Outcomes in the order of the candidates; ``None`` if a callback gave up."""
        outcomes: dict[int, Outcome] = {}
        is_counted_by_step = isinstance(evaluator, VecEnvEvaluator)
        stream = evaluator(generation)
        try:
            for position, outcome in stream:
                if outcome.is_fatal:
                    raise ValueError(outcome.error)
                if outcome.error is not None and self.env_failure == "raise":
                    raise EnvironmentRaised(
                        f"{outcome.error} (in the episode with seed {generation.candidates[position].seed})"
                    )
                outcomes[position] = outcome
                if not is_counted_by_step and not counter.replay(outcome):
                    break
        except EnvironmentRaised as error:
            raise RuntimeError(f"env: iteration {self._n_updates}: {error}") from error.__cause__
        except WorkerLostError as error:
            raise WorkerLostError(f"iteration {self._n_updates}: {error}") from error.__cause__
        finally:
            close = getattr(stream, "close", None)
            if close is not None:
                close()
        if counter.has_stopped:
            return None
        if all(outcome.error is not None for outcome in outcomes.values()):
            raise RuntimeError(f"env: iteration {self._n_updates}: all episodes failed, the first with {outcomes[0].error}")
        return [outcomes[i] for i in range(len(outcomes))]

    def _update(self, generation: Generation, outcomes: list[Outcome]) -> th.Tensor:
        """Move the policy; returns the episodes' embeddings, the parent's last."""
        self.policy.normalizer.update([outcome.observation_moments for outcome in outcomes])
        returns = self._returns(outcomes)
        embeddings = th.as_tensor(stack_embeddings(outcomes)) if self.uses_embedding else th.zeros(len(outcomes), 0)
        fitness = self._fitness(returns, embeddings)
        n_parameters = len(generation.parameters)
        rows = [noise(generation.noise_seed, pair, n_parameters) for pair in range(self.n_delta)]
        deltas = th.as_tensor(np.stack(rows), device=self.device)
        gradient = antithetic_gradient(fitness, deltas, generation.delta_std)
        direction = self._direction(gradient, deltas, embeddings[:-1], generation.delta_std)
        direction, norm = clip_direction(direction, generation.delta_std, self.max_grad_norm)
        self._apply(direction)
        self._n_updates += 1
        self.logger.record("train/grad_norm", norm)
        self.logger.record("train/delta_std", generation.delta_std)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("rollout/return_std", returns.std(correction=0).item())
        self.logger.record("rollout/return_max", returns.max().item())
        self.logger.record("rollout/parent_return", outcomes[-1].episode_return)
        return embeddings

    def _returns(self, outcomes: list[Outcome]) -> th.Tensor:
        """Mean return of each of the 2 P candidates."""
        failed = float("nan") if self.env_failure == "raise" else float(self.env_failure)
        values = [outcome.episode_return if outcome.error is None else failed for outcome in outcomes[:-1]]
        self.logger.record("rollout/n_failed", sum(outcome.error is not None for outcome in outcomes))
        return th.tensor(values, dtype=th.float64).reshape(-1, self.n_episodes).mean(dim=1)

    def _fitness(self, returns: th.Tensor, embeddings: th.Tensor) -> th.Tensor:
        """Fitness (2 P,): returns and bonuses on the same scale."""
        fitness = shape_fitness(returns, self.fitness_shaping)
        candidates, parent = embeddings[:-1], embeddings[-1:]
        if self.novelty_weight > 0:
            self.novelty_bonus.update(parent)
            novelty = self._shaped_bonus(self.novelty_bonus(candidates))
            fitness = (1 - self.novelty_weight) * fitness + self.novelty_weight * novelty
            self.logger.record("train/archive_size", len(self.novelty_bonus.embeddings))
        if self.wasserstein_coef != 0:
            self.wasserstein_bonus.update(parent, candidates)
            wasserstein_coef = self.wasserstein_coef_schedule(self._current_progress_remaining)
            fitness = fitness - wasserstein_coef * self._shaped_bonus(self.wasserstein_bonus(candidates))
            self.logger.record("train/wasserstein_distance", self.wasserstein_bonus.value(candidates))
            self.logger.record("train/wasserstein_coef", wasserstein_coef)
        return fitness

    def _shaped_bonus(self, scores: th.Tensor) -> th.Tensor:
        return shape_fitness(scores.double().reshape(-1, self.n_episodes).mean(dim=1), self.fitness_shaping)

    def _direction(self, gradient: th.Tensor, deltas: th.Tensor, embeddings: th.Tensor, delta_std: float) -> th.Tensor:
        if self.natural_coef == 0:
            return gradient
        sample = BehaviorSample(embeddings, Perturbation(deltas, delta_std))
        metric = self.kernel_metric(sample)
        direction = natural_direction(gradient, metric.factor, self.damping, self.natural_coef, self.diagonal_damping)
        cosine = th.nn.functional.cosine_similarity(direction, gradient, dim=0)
        self.logger.record("train/natural_cosine", cosine.item())
        self.logger.record("train/effective_rank", metric.effective_rank())
        return direction

    def _apply(self, direction: th.Tensor) -> None:
        """Ascend by the optimiser; weight decay is decoupled from it, as in AdamW."""
        optimizer = self.policy.optimizer
        hold_parameters(optimizer, self.policy.parameters())
        self._update_learning_rate(optimizer)
        parameters = list(self.policy.trained.values())
        if self.weight_decay > 0:
            shrunk = parameters_to_vector(parameters).detach()
            rate = self.lr_schedule(self._current_progress_remaining)
            vector_to_parameters(shrunk * (1 - rate * self.weight_decay), parameters)
        pieces = direction.split([parameter.numel() for parameter in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = -piece.view_as(parameter)
        optimizer.step()
        optimizer.zero_grad()

    def dump_logs(self) -> None:
        """Write what has been recorded."""
        assert self.ep_info_buffer is not None
        seconds = max((time.time_ns() - self.start_time) / 1e9, sys.float_info.epsilon)
        if len(self.ep_info_buffer) > 0:
            self.logger.record("rollout/ep_rew_mean", safe_mean([info["r"] for info in self.ep_info_buffer]))
            self.logger.record("rollout/ep_len_mean", safe_mean([info["l"] for info in self.ep_info_buffer]))
        if self.ep_success_buffer:
            self.logger.record("rollout/success_rate", safe_mean(self.ep_success_buffer))
        self.logger.record("time/iterations", self._n_updates, exclude="tensorboard")
        self.logger.record("time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / seconds))
        self.logger.record("time/time_elapsed", int(seconds), exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)

    @classmethod
    def load(  # type: ignore[override]
        cls: type[SelfEvolutionStrategy], path: Any, env: GymEnv | None = None, device: th.device | str = "cpu", **kwargs: Any
    ) -> SelfEvolutionStrategy:
        """As every SB3 algorithm's, but on the CPU unless told otherwise, as the constructor."""
        return super().load(path, env, device, **kwargs)

    def set_random_seed(self, seed: int | None = None) -> None:
        """As every SB3 algorithm's; all of training is a function of it."""
        super().set_random_seed(seed)
        if seed is not None:
            self.seed = self._root_seed = seed

    def set_parameters(self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto") -> None:
        """As every SB3 algorithm's.

        :raises ValueError: also for a file of a strategy with other slots filled, naming the argument that fills them
        """
        given = load_path_or_dict
        if not isinstance(given, dict):
            given = load_from_zip_file(given, load_data=False, device=device)[1]
        own = self._get_torch_save_params()[0]
        check_saved_slots(given, own, self.policy.state_dict(), exact_match)
        super().set_parameters(given, exact_match, device)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", *(slot for slot in SLOTS if hasattr(self, slot))], []
