"""The one training loop of every policy gradient here; named algorithms fill its slots."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutBufferSamples, Schedule
from stable_baselines3.common.utils import explained_variance, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv
from torch.nn.attention import SDPBackend, sdpa_kernel

from sb3_wng.algorithms.action_laws import action_law, actor_and_critic_parameters
from sb3_wng.algorithms.arguments import check_policy_gradient_arguments, check_saved_class, make_schedule, minibatch_size
from sb3_wng.algorithms.critic import fit_critic
from sb3_wng.algorithms.evolution_policies import SPECIAL_POLICIES
from sb3_wng.algorithms.guidance import begin_penalty, embed_reference, end_penalty, keep_given_starts, make_penalty
from sb3_wng.algorithms.penalty import BehaviorPenalty
from sb3_wng.algorithms.policy_metrics import policy_metrics
from sb3_wng.algorithms.progress import BoundedProgress
from sb3_wng.algorithms.rollouts import (
    check_finite_observation,
    check_finite_rollout,
    minibatches,
    policy_actions,
    refresh_batch_statistics,
    rollout_in_order,
    with_plain_rewards,
)
from sb3_wng.algorithms.surrogate import Measurement, PolicyBatch, PolicyGradient, measure, policy_gradient
from sb3_wng.behavior import BehaviorEmbedding, Trajectory
from sb3_wng.geometry import ActionLaw
from sb3_wng.optim import (
    Damping,
    FixedRate,
    KernelWassersteinMetric,
    LevenbergMarquardtDamping,
    NaturalGradient,
    OptimizerStep,
    StepReport,
    StepRule,
    Trial,
    TrustRegion,
    hold_parameters,
)

SelfNaturalPolicyGradient = TypeVar("SelfNaturalPolicyGradient", bound="NaturalPolicyGradient")


class NaturalPolicyGradient(BoundedProgress):
    """Actor-critic policy gradient with a metric and a step rule as slots.

    After each rollout the actor takes ``n_policy_updates`` passes of natural-gradient steps on the surrogate
    E[ratio * advantage] (the whole rollout at once, or minibatches), then the critic is fitted to the returns. Use the
    named subclasses; their docstrings explain the arguments.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
        **SPECIAL_POLICIES,  # which are refused with the reason
    }

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
        target_kl: float | Schedule | None = None,
        step_size: float | Schedule = 0.1,
        n_policy_updates: int = 1,
        policy_batch_size: int | None = None,
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
        wasserstein_coef: float = 0.0,
        distance: str = "closed_form",
        adaptive_coef: bool = False,
        entropic_reg: float = 0.2,
        reference: Any = None,
        n_penalized_epochs: int = 0,
        actor_learning_rate: float | Schedule | None = None,
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
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=0.0,
            vf_coef=0.0,  # the critic has its own loss and step
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
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
            _init_setup_model=False,
        )
        self.class_names: list[str] = []  # load() fills in the file's
        self.batch_size = batch_size
        self.metric = metric
        self.step_rule = step_rule
        self.target_distance = target_distance
        self.target_kl = target_kl
        self.step_size = step_size
        self.n_policy_updates = n_policy_updates
        self.policy_batch_size = policy_batch_size
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.adaptive_damping = adaptive_damping
        self.diagonal_damping = diagonal_damping
        self.line_search_shrinking_factor = line_search_shrinking_factor
        self.line_search_max_iter = line_search_max_iter
        self.n_critic_updates = n_critic_updates
        self.std_weight = std_weight
        self.n_basis = n_basis
        self.log_bandwidth = log_bandwidth
        self.embedding = embedding
        self.embedding_horizon = embedding_horizon
        self.sub_sampling_factor = sub_sampling_factor
        self.wasserstein_coef = wasserstein_coef
        self.distance = distance
        self.adaptive_coef = adaptive_coef
        self.entropic_reg = entropic_reg
        self.reference = reference
        self.n_penalized_epochs = n_penalized_epochs
        self.actor_learning_rate = actor_learning_rate
        self.normalize_advantage = normalize_advantage
        self.adapted_from: dict[str, float] = {}  # where damping and coefficient started; load() fills in the file's
        self._has_warned_of_few_samples = False
        self._trainable: list[th.nn.Parameter] = []
        self.plain_rewards: np.ndarray | None = None  # of a rollout, (n_steps, n_envs)
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        check_saved_class(self)
        check_policy_gradient_arguments(self)  # here and not above: load() gives arguments, too
        self.reference = None if self.reference is None else embed_reference(self)
        super()._setup_model()
        self._split_parameters()
        self.step_size_schedule = make_schedule(self.step_size)
        self.target_distance_schedule = make_schedule(self.target_distance)
        self.target_kl_schedule = make_schedule(math.inf if self.target_kl is None else self.target_kl)
        interval = int(self.adaptive_damping)
        damping = LevenbergMarquardtDamping(self.cg_damping, interval=interval) if interval else Damping(self.cg_damping)
        self.natural_gradient = NaturalGradient(self._make_step_rule(), damping)
        seed = self.seed if self.uses_kernel else 0  # there whatever the metric, so that load() can change it
        self.kernel_metric = KernelWassersteinMetric(self.n_basis, self.log_bandwidth, self.diagonal_damping, seed)
        self.behavior_penalty = make_penalty(self)
        keep_given_starts(self)

    def _split_parameters(self) -> None:
        """Tell the actor's parameters from the critic's, again where some were frozen, unfrozen or replaced since."""
        trainable = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        if [id(q) for q in trainable] != [id(q) for q in self._trainable]:
            self.actor_parameters, self.critic_parameters = actor_and_critic_parameters(self.policy, self.observation_space)
            self._trainable = trainable
            hold_parameters(self.policy.optimizer, self.policy.parameters())

    @property
    def penalty(self) -> BehaviorPenalty | None:
        """The penalty, if it has a coefficient."""
        return None if self.wasserstein_coef == 0 else self.behavior_penalty

    @property
    def uses_kernel(self) -> bool:
        """Whether the metric is estimated from samples of behaviour."""
        return self.metric in ("kernel", "combined")

    def scheduled(self, schedule: Schedule) -> float:
        """A schedule's value at this point of training."""
        return max(schedule(self._current_progress_remaining), 0.0)  # RL-Zoo's schedules go on below zero

    def _make_step_rule(self, unit: float = 1.0) -> StepRule:
        cap = self.scheduled(self.target_kl_schedule)
        if self.step_rule == "fixed_rate":
            return FixedRate(self.scheduled(self.step_size_schedule), max_divergence=cap)
        if self.step_rule == "optimizer":
            return OptimizerStep(self.policy.optimizer, self.max_grad_norm)
        region = 2 * cap / unit if self.metric == "fisher" else self.scheduled(self.target_distance_schedule)
        # n equal steps in a row are n^2 times as long (squared) as one: together they reach the region's edge
        radius = region / self.n_policy_updates**2
        return TrustRegion(radius, region, cap, self.line_search_shrinking_factor, self.line_search_max_iter)

    def train(self) -> None:
        """Update the actor, then the critic, from the rollout buffer."""
        in_order = self.penalty is not None and self.penalty.embedding is not None
        rollout = rollout_in_order(self.rollout_buffer) if in_order else next(self.rollout_buffer.get(batch_size=None))
        rate = self.actor_learning_rate
        update_learning_rate(self.policy.optimizer, self.scheduled(self.lr_schedule if rate is None else make_schedule(rate)))
        self._split_parameters()
        self._update_policy(rollout)
        self._update_learning_rate(self.policy.optimizer)
        fit_critic(self, rollout)
        self._n_updates += 1
        self._log_update()

    @sdpa_kernel(SDPBackend.MATH)  # attention's faster kernels have no second derivative
    def _update_policy(self, rollout: RolloutBufferSamples) -> None:
        # Trust regions compare values of one deterministic function: the law that acts, without dropout's noise.
        refresh_batch_statistics(self.policy, rollout.observations)
        self.policy.set_training_mode(False)
        batch = self._policy_batch(rollout)
        unit = self._unit(batch.old_law)
        self.natural_gradient.step_rule = self._make_step_rule(unit)
        if self.penalty is not None:
            batch = begin_penalty(self, self.penalty, batch)
        reports = []
        batch_size = minibatch_size(self)
        for _ in range(self.n_policy_updates):
            for index in minibatches(len(batch.advantages), batch_size, self.device):
                reports.append(self._policy_step(batch if batch_size is None else batch.rows(index), unit))
            if self.step_rule == "optimizer" and self._is_beyond_cap(batch):
                break  # as PPO: this rule has no cap of its own
        if self.penalty is not None and self.n_penalized_epochs > 0:
            self._penalized_epochs(batch)
        measured = self.measure(batch)
        self._log_policy_update(reports, measured)
        if self.penalty is not None:
            end_penalty(self, self.penalty, measured)

    def _is_beyond_cap(self, batch: PolicyBatch) -> bool:
        """Whether passes over the rollout are to end."""
        limit = 1.5 * self.scheduled(self.target_kl_schedule)
        if math.isinf(limit):
            return False
        with th.no_grad():
            return not batch.old_law.kl_divergence(self.action_law(batch.observations)).mean().item() <= limit  # NaN, too

    def _penalized_epochs(self, batch: PolicyBatch) -> None:
        """Epochs of the optimiser on the penalised surrogate, after the natural steps."""
        step = OptimizerStep(self.policy.optimizer, self.max_grad_norm)
        for _ in range(self.n_penalized_epochs):
            for index in minibatches(len(batch.advantages), self.policy_batch_size, self.device):
                gradient = self.policy_gradient(batch.rows(index)).gradient
                if th.isfinite(gradient).all():
                    step(self.actor_parameters, gradient, 0.0, 0.0, lambda: Trial(0.0))
                else:
                    self.natural_gradient.n_skipped += 1
            if self._is_beyond_cap(batch):
                break

    def _policy_batch(self, rollout: RolloutBufferSamples) -> PolicyBatch:
        advantages = rollout.advantages
        if self.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        with th.no_grad():
            old_law = self.action_law(rollout.observations).detach()
        actions = policy_actions(rollout.actions, self.action_space)
        return PolicyBatch(rollout.observations, actions, advantages, rollout.old_log_prob, old_law)

    def action_law(self, observations: Any) -> ActionLaw:
        """The current policy's law of actions at a batch of preprocessed observations."""
        return action_law(self.policy.get_distribution(observations), self.std_weight)

    def _policy_step(self, batch: PolicyBatch, unit: float) -> StepReport:
        estimate = self.policy_gradient(batch)
        metric, length_metric = policy_metrics(self, batch, estimate, unit)
        return self.natural_gradient.step(
            self.actor_parameters,
            estimate.gradient,
            metric,
            estimate.objective,
            lambda: self._trial(self.measure(batch), unit),
            length_metric,
        )

    def policy_gradient(self, batch: PolicyBatch) -> PolicyGradient:
        """Gradient of the surrogate in the actor's parameters."""
        return policy_gradient(self.policy, self.actor_parameters, batch, self.std_weight, self._penalty_of_actions)

    def measure(self, batch: PolicyBatch) -> Measurement:
        """Compare the current policy with the one that collected the batch."""
        return measure(self.policy, batch, self.std_weight, self._penalty_of_actions)

    @property
    def _penalty_of_actions(self) -> BehaviorPenalty | None:
        """The penalty, where it is a function of the law of actions and not already in the advantages."""
        return self.penalty if self.penalty is not None and self.penalty.embedding is None else None

    def _unit(self, law: ActionLaw) -> float:
        """What squared lengths are measured in, so that radius and damping mean the same on every task.

        In a trust region: the collecting policy's spread for Wasserstein (a radius in action units would be too long a
        step once the spread has shrunk, and too short before), the number of action dimensions for Fisher. Else 1.
        """
        if self.step_rule != "trust_region":
            return 1.0
        return law.n_actions if self.metric == "fisher" else max(law.spread().item(), 1e-12)

    def _trial(self, measured: Measurement, unit: float) -> Trial:
        distance = 2 * measured.kl_divergence if self.metric == "fisher" else measured.wasserstein_distance
        return Trial(measured.objective, distance / unit, measured.kl_divergence)

    def _log_policy_update(self, reports: list[StepReport], measured: Measurement) -> None:
        ratios = [report.reduction_ratio for report in reports if report.reduction_ratio is not None]
        self.logger.record("train/policy_objective", measured.objective)
        if self.penalty is None or self.penalty.embedding is None:  # else it is the distance between trajectories
            self.logger.record("train/wasserstein_distance", measured.wasserstein_distance)
        self.logger.record("train/kl_divergence_loss", measured.kl_divergence)
        self.logger.record("train/is_line_search_success", np.mean([report.accepted for report in reports]))
        self.logger.record("train/step_scale", np.mean([report.scale for report in reports]))
        if ratios:
            self.logger.record("train/reduction_ratio", np.mean(ratios))

    def _log_update(self) -> None:
        buffer = self.rollout_buffer
        self.logger.record("train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten()))
        self.logger.record("train/damping", self.natural_gradient.damping.value.item())
        self.logger.record("train/n_skipped_steps", self.natural_gradient.n_skipped.item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        try:
            completed = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        except ValueError as error:  # torch's distributions refuse non-finite parameters, but cannot say where from
            check_finite_observation(self._last_obs, error)
            raise
        if completed:
            check_finite_observation(self._last_obs)  # not in the buffer, but its value is in the returns
            check_finite_rollout(rollout_buffer)
        return completed

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        return with_plain_rewards(self, super()._init_callback(callback, progress_bar))

    def learn(
        self: SelfNaturalPolicyGradient,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfNaturalPolicyGradient:
        """As every SB3 algorithm's; ``tb_log_name`` defaults to the class name."""
        name = tb_log_name or type(self).__name__
        return super().learn(total_timesteps, callback, log_interval, name, reset_num_timesteps, progress_bar)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", "natural_gradient", "behavior_penalty", "kernel_metric"], []

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "actor_parameters", "critic_parameters", "_trainable", "plain_rewards"]
