"""Several agents that train in lock-step on shares of one VecEnv: rollouts, best member, logs, save and load."""

from __future__ import annotations

import warnings
from collections import deque
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch import nn
from torch.nn.utils import parameters_to_vector

from sb3_wng.algorithms.arguments import check_fractions, check_integers, check_kernel_samples, check_saved_class
from sb3_wng.algorithms.policy_gradient import NaturalPolicyGradient
from sb3_wng.algorithms.progress import BoundedProgress
from sb3_wng.algorithms.rollouts import check_finite_observation, check_finite_rollout
from sb3_wng.population.arguments import check_saved_size
from sb3_wng.population.particles import KINDS, Kind, Optimizers, Particle, kind_name
from sb3_wng.population.policies import PopulationPolicy
from sb3_wng.population.rollouts import Timeout, column_buffer, evaluate_columns, step_columns

SelfPopulation = TypeVar("SelfPopulation", bound="Population")


class Population(BoundedProgress):
    """``population_size`` particles, each with its own actor, critic and environments; subclasses say how they learn.

    :meth:`train` is theirs: :meth:`begin_particles`, directions from :meth:`gradients`, :meth:`take_steps`, :meth:`log_means`.

    The columns of the VecEnv are split evenly, in order. All steps count towards ``total_timesteps``. It predicts as the
    particle with the best mean return of its last ``stats_window_size`` episodes.
    """

    size_arguments: ClassVar[tuple[str, str]] = ("n_particles", "n_envs_per_particle")  # as users know them
    own_log_names: ClassVar[tuple[str, ...]] = ()  # mean something else for the population than for a particle
    policy: PopulationPolicy  # type: ignore[assignment]
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        n_particles: int,
        n_envs_per_particle: int,
        algorithm: Any,
        algorithm_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = True,
        **kwargs: Any,
    ) -> None:
        self.n_particles = n_particles
        self.n_envs_per_particle = n_envs_per_particle
        check_integers(self, n_particles=1, n_envs_per_particle=1)
        self.algorithm = kind_name(algorithm)
        if n_envs_per_particle != 1 and isinstance(env, VecEnv):
            warnings.warn(f"{self.size_arguments[1]} has no effect with a VecEnv, whose columns are split", stacklevel=3)
        if isinstance(env, str):
            env = make_vec_env(env, n_particles * n_envs_per_particle, seed=kwargs.get("seed"))
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]
            ent_coef=0.0,
            vf_coef=0.0,  # critics have their own loss and step
            max_grad_norm=0.0,  # not used
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
            _init_setup_model=False,
            **kwargs,
        )
        self.class_names: list[str] = []  # load() fills in the file's
        self.saved_size = 0  # this, too
        self.algorithm_kwargs = dict(algorithm_kwargs or {})
        self.normalize_advantage = normalize_advantage
        self._names_of_means: set[str] = set()  # what is logged as a mean over the particles
        self.particle_returns: list[deque[float]] = [deque(maxlen=self._stats_window_size) for _ in range(n_particles)]
        self._running_returns = np.zeros(0)  # of the episodes that go on, (n_envs,)
        self._is_inherited = np.zeros(0, dtype=bool)  # episodes that another policy began, which say nothing of this one

    @property
    def kind(self) -> Kind:
        """What the particles are."""
        return KINDS[self.algorithm]

    @property
    def population_size(self) -> int:
        """Number of agents that are trained."""
        return self.n_particles

    def _check_arguments(self) -> None:
        """:raises ValueError: naming the argument and what it may be; called before anything is made of them"""

    def _setup_model(self) -> None:
        check_saved_class(self)
        check_saved_size(self)
        self.algorithm = kind_name(self.algorithm)
        check_fractions(self, "gamma", "gae_lambda")
        self._check_arguments()  # here and not above: load() gives arguments, too
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        if self.rollout_buffer_class is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = DictRolloutBuffer if is_dict else RolloutBuffer
        learners = [self._make_learner() for _ in range(self.population_size)]
        first = learners[0].policy
        given = {
            name: self.policy_kwargs[name] for name in ("optimizer_class", "optimizer_kwargs") if name in self.policy_kwargs
        }
        self.policy = PopulationPolicy(
            type(first), first._get_constructor_parameters(), len(learners), [learner.policy for learner in learners], **given
        ).to(self.device)
        self.particles = [Particle(self.kind, learner) for learner in learners]
        self.critic_optimizers = Optimizers([particle.optimizer for particle in self.policy])
        self.natural_gradients = nn.ModuleList(learner.natural_gradient for learner in learners)
        self.kernel_metrics = nn.ModuleList(learner.kernel_metric for learner in learners)
        baselines = [particle.baseline for particle in self.particles if particle.baseline is not None]
        if baselines:
            self.baselines = nn.ModuleList(baselines)
        self.rollout_buffer = self.rollout_buffer_class(
            self.n_steps,
            self.observation_space,
            self.action_space,
            device=self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda if self.kind.has_critic else 1.0,
            n_envs=self.n_envs,
            **self.rollout_buffer_kwargs,
        )

    def _make_learner(self) -> NaturalPolicyGradient:
        learner = self.kind.algorithm(
            self.policy_class,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            n_steps=1,  # of its own buffer, which the population's replaces
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            normalize_advantage=self.normalize_advantage,
            use_sde=self.use_sde,
            policy_kwargs=self.policy_kwargs,
            device=self.device,
            _init_setup_model=False,
            **{**self.kind.arguments, **self.algorithm_kwargs},
        )
        learner.observation_space, learner.action_space, learner.n_envs = self.observation_space, self.action_space, 1
        learner._setup_model()
        return learner

    def check_n_envs(self) -> None:
        """:raises ValueError: unless every particle gets the same number of environments"""
        size, width = self.size_arguments
        if self.n_envs % self.population_size:
            raise ValueError(
                f"n_envs must be a multiple of {size}={self.population_size}, got {self.n_envs}: pass an environment id "
                f"(then {width} counts), or make_vec_env(..., n_envs={self.population_size})"
            )
        if self.normalize_advantage and self.n_steps * self.n_envs == self.population_size:
            raise ValueError(
                "n_steps=1 with one environment each makes one advantage, which cannot be normalized: raise either"
            )
        check_kernel_samples(self.particles[0].learner, self.n_steps, self.n_envs // self.population_size)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        self.check_n_envs()  # a loaded population may have been given another environment, which is enough to predict
        self.policy.check_trainable()
        before = self._last_obs
        prepared = super()._setup_learn(*args, **kwargs)
        if self._last_obs is not before:  # the environments were reset
            self._running_returns = np.zeros(self.n_envs)
            self._is_inherited = np.zeros(self.n_envs, dtype=bool)
        self._running_returns[self._last_episode_starts] = 0.0  # by somebody else
        self._is_inherited[self._last_episode_starts] = False
        return prepared

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """As every SB3 algorithm's; what particles reached in the environment before does not count in another."""
        is_first = self.env is None  # of a population that was loaded without one
        super().set_env(env, force_reset)
        if not is_first:
            for returns in self.particle_returns:
                returns.clear()

    @property
    def columns(self) -> list[slice]:
        """Environments of each particle."""
        return self.policy.columns(self.n_envs)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        assert self._last_obs is not None, "No previous observation was provided"
        self.policy.retie()
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        callback.on_rollout_start()
        timeouts: list[Timeout] = []
        values = th.zeros(env.num_envs)  # known at the end of the rollout, for all steps at once
        for n_steps in range(n_rollout_steps):
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs)
            actions, log_probs = self._act()
            clipped_actions = self._environment_actions(actions)
            new_obs, rewards, dones, infos, ended = step_columns(env, clipped_actions)
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                self._running_returns[dones] = 0.0
                self._is_inherited[dones] = False
                return False
            self._record_episodes(infos, rewards, dones)
            timeouts += [Timeout(n_steps, column, observation) for column, observation in ended]
            if isinstance(self.action_space, spaces.Discrete):
                actions = actions.reshape(-1, 1)
            last_obs: Any = self._last_obs
            rollout_buffer.add(last_obs, actions, rewards, np.asarray(self._last_episode_starts), values, log_probs)
            self._last_obs, self._last_episode_starts = new_obs, dones
        for particle, columns in zip(self.particles, self.columns, strict=True):
            particle.learner.plain_rewards = rollout_buffer.rewards[:, columns].copy()  # values and costs are added to them
        self._finish_rollout(rollout_buffer, timeouts, dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    @th.inference_mode()
    def _act(self) -> tuple[NDArray[Any], th.Tensor]:
        try:
            actions, log_probs = self.policy(obs_as_tensor(self._last_obs, self.device))  # type: ignore[arg-type]
        except ValueError as error:  # torch's distributions refuse non-finite parameters, but cannot say where from
            check_finite_observation(self._last_obs, error)
            raise
        played = actions.cpu().numpy()
        if not np.isfinite(played).all():  # the stacked forward pass does not look, as torch's distributions do
            check_finite_observation(self._last_obs)
            raise ValueError(
                "policy: non-finite actions, as the parameters have grown too large: lower learning_rate (of natural "
                "particles: their target_kl) or raise the temperature"
            )
        return played, log_probs

    def _environment_actions(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Actions within the bounds of the space, in its shape."""
        if not isinstance(self.action_space, spaces.Box):
            return actions
        actions = actions.reshape(-1, *self.action_space.shape)
        if self.policy.squash_output:
            return self.policy.unscale_action(actions)
        return np.clip(actions, self.action_space.low, self.action_space.high)

    def _record_episodes(self, infos: list[dict[str, Any]], rewards: NDArray[Any], dones: NDArray[np.bool_]) -> None:
        """Keep what episodes came to, as ``Monitor`` has it; without one, the sum of the rewards that are learnt from."""
        assert self.ep_info_buffer is not None
        assert self.ep_success_buffer is not None
        width = self.n_envs // self.population_size
        self._running_returns += rewards
        for column in np.flatnonzero(dones):
            info = infos[column]
            if "episode" in info:
                self.ep_info_buffer.append(info["episode"])
            if not self._is_inherited[column]:
                self.particle_returns[column // width].append(info.get("episode", {"r": self._running_returns[column]})["r"])
            self._running_returns[column] = 0.0
            self._is_inherited[column] = False
            if "is_success" in info:
                self.ep_success_buffer.append(info["is_success"])

    def _finish_rollout(self, buffer: RolloutBuffer, timeouts: list[Timeout], dones: NDArray[np.bool_]) -> None:
        check_finite_observation(self._last_obs)  # not in the buffer, but its value is in the returns
        check_finite_rollout(buffer)
        last_values = th.zeros(self.n_envs)
        if self.kind.has_critic:
            for particle, columns in zip(self.policy, self.columns, strict=True):
                values = evaluate_columns(buffer, columns, particle, self._last_obs, timeouts)
                last_values[columns] = th.as_tensor(values)
        buffer.compute_returns_and_advantage(last_values, dones)
        if np.isfinite(self.mean_returns).any():  # else the best is who was so before
            self.policy.best.fill_(int(np.argmax(self.mean_returns)))

    @property
    def mean_returns(self) -> NDArray[np.float64]:
        """Each particle's mean return over its last episodes, shape (population_size,); -inf before the first."""
        returns = self.particle_returns[: self.population_size]
        return np.array([np.mean(episodes) if episodes else -np.inf for episodes in returns])

    def shares(self) -> list[RolloutBuffer]:
        """The rollout buffer, one share for each particle."""
        return [column_buffer(self.rollout_buffer, columns) for columns in self.columns]

    def begin_particles(self, in_order: bool = False) -> None:
        """Hand its share of the rollout to each particle.

        :param in_order: keep steps as windows are cut, one environment after the other
        """
        for particle, share in zip(self.particles, self.shares(), strict=True):
            particle.begin(share, self._current_progress_remaining, in_order)

    def gradients(self) -> th.Tensor:
        """Of the particles' returns, shape (n, p); zero for a particle whose gradient is not finite, which is logged."""
        gradients = th.stack([particle.gradient() for particle in self.particles])
        is_usable = th.isfinite(gradients).all(dim=1, keepdim=True)
        self.logger.record("train/n_unusable_gradients", len(gradients) - int(is_usable.sum()))
        return th.where(is_usable, gradients, 0.0)  # one particle's overflow must not reach the others

    def take_steps(self, directions: th.Tensor, share: float = 1.0) -> None:
        """Move every actor, then fit the critics.

        :param directions: shape (n, p)
        :param share: weight of a particle's own gradient in its direction
        """
        if self.kind.is_natural:
            for particle, direction in zip(self.particles, directions, strict=True):
                particle.natural_step(direction, share)
        else:
            self._adam_step(directions)
        for particle in self.particles:
            particle.update_critic()
        self._n_updates += 1

    def _adam_step(self, directions: th.Tensor) -> None:
        self._update_learning_rate(self.policy.optimizer)
        self.policy.theta.grad = -directions
        self.policy.optimizer.step()
        self.policy.theta.grad = None

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        particle: int | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """As every SB3 algorithm's.

        :param particle: index of the particle that acts; ``None``: the best so far
        """
        return self.policy.predict(observation, state, episode_start, deterministic, particle)

    def log_means(self) -> None:
        """Log what the actors are like, and the means over the particles of what they have logged themselves."""
        logged = {name: None for particle in self.particles for name in particle.learner.logger.name_to_value}
        names = [name for name in logged if name not in self.own_log_names]
        for name in names:
            values = [p.learner.logger.name_to_value[name] for p in self.particles if name in p.learner.logger.name_to_value]
            # what the population records itself comes before; the means of an update that was not dumped are replaced
            if name not in self.logger.name_to_value or name in self._names_of_means:
                self._names_of_means.add(name)
                self.logger.record(name, float(np.mean(values)))
        for particle in self.particles:
            particle.learner.logger.name_to_value.clear()
        self.logger.record("train/parameter_norm", self.policy.theta.norm(dim=1).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if hasattr(self.policy.particles[0], "log_std"):
            stds = [parameters_to_vector([particle.log_std]).exp().mean() for particle in self.policy]
            self.logger.record("train/std", th.stack(stds).mean().item())

    def dump_logs(self, iteration: int = 0) -> None:
        """Write the log: aggregates, the best particle, and (not to the terminal) every particle."""
        if np.isfinite(self.mean_returns).any():
            self.logger.record("rollout/ep_rew_mean_best", self.mean_returns.max())
            for index in np.flatnonzero(np.isfinite(self.mean_returns)):
                self.logger.record(f"particles/ep_rew_mean_{index:02d}", self.mean_returns[index], exclude="stdout")
        super().dump_logs(iteration)

    def learn(
        self: SelfPopulation,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfPopulation:
        """As every SB3 algorithm's; ``total_timesteps`` counts the steps of all particles."""
        name = tb_log_name or type(self).__name__
        return super().learn(total_timesteps, callback, log_interval, name, reset_num_timesteps, progress_bar)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules = ["critic_optimizers", "natural_gradients", "kernel_metrics"] + ["baselines"] * self.kind.has_baseline
        return ["policy", "policy.optimizer", *modules], []

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "particles"]
