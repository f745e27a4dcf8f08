"""A population's policies: real SB3 policies whose actors are the rows of one matrix."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_wng.algorithms.action_laws import actor_and_critic_parameters
from sb3_wng.algorithms.rollouts import select

PLAIN_DISTRIBUTIONS = (
    DiagGaussianDistribution,
    CategoricalDistribution,
    MultiCategoricalDistribution,
    BernoulliDistribution,
)
ELEMENTWISE = (nn.Tanh, nn.ReLU, nn.ELU, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Identity)


class PopulationPolicy(BasePolicy):
    """``n`` actor-critic policies of one architecture; actor parameters are views of the rows of :attr:`theta`.

    A change of the matrix is a change of the particles and the other way round. Critics are the particles' own and not
    in the matrix. Batches of observations are split evenly: the first ``B / n`` rows are the first particle's, and so on.
    Alone, the policy acts as its best particle.

    :param particle_class: class of the particles
    :param particle_kwargs: arguments of their constructor
    :param n_particles: n
    :param particles: built already; ``None`` builds them
    :param optimizer_class: of the actors' parameters; the critics' is the particles'
    :param optimizer_kwargs: but for its learning rate
    """

    theta: th.Tensor  # (n, p)
    best: th.Tensor

    def __init__(
        self,
        particle_class: type[ActorCriticPolicy],
        particle_kwargs: dict[str, Any],
        n_particles: int,
        particles: Sequence[ActorCriticPolicy] | None = None,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        particles = particles or [particle_class(**particle_kwargs) for _ in range(n_particles)]
        first = particles[0]
        super().__init__(
            first.observation_space,
            first.action_space,
            normalize_images=first.normalize_images,
            squash_output=first.squash_output,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        self.particle_class = particle_class
        self.particle_kwargs = particle_kwargs
        self.particles = nn.ModuleList(particles)
        self.register_buffer("best", th.tensor(0.0))  # a float, as SB3's tools expect of every saved tensor
        self.actors = [actor_and_critic_parameters(particle, self.observation_space)[0] for particle in self]
        self._tie()

    def _tie(self) -> None:
        """Gather the actors' parameters in one matrix and let them be views of its rows."""
        self.theta = th.stack([th.cat([q.detach().flatten() for q in actor]) for actor in self.actors])
        self._share()
        # the rate of the moment is set before each step
        self.optimizer = self.optimizer_class([self.theta], lr=1e-3, **self.optimizer_kwargs)  # type: ignore[call-arg]
        self._was_trainable = [q.requires_grad for q in self.particles.parameters()]

    def check_trainable(self) -> None:
        """:raises ValueError: for parameters that were frozen or unfrozen since the matrix was made of the others"""
        if [q.requires_grad for q in self.particles.parameters()] != self._was_trainable:
            raise ValueError(
                "policy: parameters were frozen or unfrozen after the population was made; do it where they are made, as in "
                "the constructor of policy_kwargs' features_extractor_class"
            )

    def retie(self) -> None:
        """Take over parameters that got memory of their own since (``load_from_vector``, ``pickle``): their values count."""
        is_tied = True
        for row, actor in zip(self.theta, self.actors, strict=True):
            for parameter, values in zip(actor, row.split([q.numel() for q in actor]), strict=True):
                if parameter.data_ptr() != values.data_ptr():
                    values.copy_(parameter.detach().flatten())
                    is_tied = False
        if not is_tied:
            self._share()

    def _share(self) -> None:
        for row, actor in zip(self.theta, self.actors, strict=True):
            for parameter, values in zip(actor, row.split([q.numel() for q in actor]), strict=True):
                parameter.data = values.view_as(parameter)
        self.stack = StackedActor.of(self, self.actors[0])

    def __deepcopy__(self, memo: dict[int, Any]) -> PopulationPolicy:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        copied._share()  # parameters are copied to memory of their own
        return copied

    def _apply(self, fn: Any, recurse: bool = True) -> PopulationPolicy:
        super()._apply(fn, recurse)
        first = next(self.particles.parameters())
        if first.device != self.theta.device or first.dtype != self.theta.dtype:  # each parameter moved to its own storage
            self._tie()
        return self

    def __iter__(self) -> Iterator[ActorCriticPolicy]:
        return iter(self.particles)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.particles)

    def __getitem__(self, index: int) -> ActorCriticPolicy:
        """One particle: an SB3 policy of its own, to evaluate, save or export."""
        chosen = self.particles[index]
        assert isinstance(chosen, ActorCriticPolicy)
        return chosen

    def columns(self, n_columns: int) -> list[slice]:
        """Which of the environments, or rows of a batch, belong to which particle."""
        width = n_columns // len(self)
        return [slice(i * width, (i + 1) * width) for i in range(len(self))]

    def forward(self, observations: Any) -> tuple[th.Tensor, th.Tensor]:
        """Sample every particle's actions at its rows of the observations.

        :param observations: tensor (B, ...) or dict of them, B a multiple of n
        :return: actions (B, ...) as the distributions give them, and their log-probabilities (B,)
        :raises ValueError: for another number of observations; ``best_particle`` and ``policy[i]`` act alone
        """
        size = len(next(iter(observations.values())) if isinstance(observations, dict) else observations)
        if size % len(self):
            raise ValueError(
                f"a population of {len(self)} acts on a multiple of as many observations, got {size}: take predict(), or one "
                "particle: policy.best_particle, policy[0], ..."
            )
        if self.stack is not None:
            return self.stack.sample(observations)
        actions, log_probs = [], []
        for particle, rows in zip(self, self.columns(size), strict=True):
            distribution = particle.get_distribution(select(observations, rows))
            actions.append(distribution.get_actions())
            log_probs.append(distribution.log_prob(actions[-1]))
        return th.cat(actions), th.cat(log_probs)

    def reset_noise(self, n_envs: int = 1) -> None:
        """Draw new exploration matrices (gSDE), one per environment and at least one per particle."""
        for particle in self:
            particle.reset_noise(max(1, n_envs // len(self)))

    @property
    def best_particle(self) -> ActorCriticPolicy:
        """The one with the best recent returns in training."""
        return self[int(self.best)]

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """The best particle's distribution of actions at observations (B, ...)."""
        return self.best_particle.get_distribution(obs)

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """The best particle's values (B, 1) of observations (B, ...)."""
        return self.best_particle.predict_values(obs)

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """Values, log-probabilities of actions, and entropy, of the best particle."""
        return self.best_particle.evaluate_actions(obs, actions)

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        particle: int | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """As every SB3 policy's, by one particle.

        :param particle: its index; ``None``: the one with the best recent returns in training
        :raises ValueError: for an index out of range
        """
        index = int(self.best) if particle is None else particle
        if not 0 <= index < len(self):
            raise ValueError(f"particle must be an index from 0 to {len(self) - 1}, got {particle}")
        return self[index].predict(observation, state, episode_start, deterministic)

    def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        return self.best_particle._predict(observation, deterministic)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "particle_class": self.particle_class,
            "particle_kwargs": self.particle_kwargs,
            "n_particles": len(self),
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }


Layer = tuple[th.Tensor, th.Tensor] | nn.Module


class StackedActor:
    """The forward pass of all particles at once, for fully connected actors on flat observations.

    :param layers: weights (n, in, out) and biases (n, 1, out), views of the matrix, with activations in between
    :param log_std: shape (n, 1, a), of Gaussian actions; else ``None``
    :param distribution: of the actions, as SB3 makes it from the last layer's outputs
    """

    def __init__(self, layers: Sequence[Layer], log_std: th.Tensor | None, distribution: Distribution) -> None:
        self.layers = layers
        self.log_std = log_std
        self.distribution = distribution

    @classmethod
    def of(cls, policy: PopulationPolicy, actor: Sequence[nn.Parameter]) -> StackedActor | None:
        """The stacked form of a population, or ``None`` where only the particles themselves know how to act.

        :param actor: parameters of the first particle's actor, in the order of the matrix's columns
        """
        first = policy[0]
        if not _is_plain(first):
            return None
        views: dict[Any, th.Tensor] = {}
        for parameter, columns in zip(actor, policy.theta.split([q.numel() for q in actor], dim=1), strict=True):
            views[parameter] = columns.view(len(policy), *parameter.shape)
        modules = [*first.mlp_extractor.policy_net.children(), first.action_net]
        layers: list[Layer] = []
        for module in modules:
            is_linear = isinstance(module, nn.Linear)
            layers.append((views[module.weight].transpose(1, 2), views[module.bias][:, None]) if is_linear else module)
        is_gaussian = isinstance(first.action_dist, DiagGaussianDistribution)
        return cls(layers, views[first.log_std][:, None] if is_gaussian else None, first.action_dist)

    def outputs(self, observations: th.Tensor) -> th.Tensor:
        """Means or logits (n, B / n, a) for observations (B, ...)."""
        x = observations.float().flatten(start_dim=1)
        n_particles = len(self.layers[-1][1])  # type: ignore[index]
        x = x.view(n_particles, len(x) // n_particles, -1)
        for layer in self.layers:
            x = layer(x) if isinstance(layer, nn.Module) else th.baddbmm(layer[1], x, layer[0])
        return x

    def sample(self, observations: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Actions (B, ...) and their log-probabilities (B,)."""
        outputs = self.outputs(observations)
        if self.log_std is None:
            distribution = self.distribution.proba_distribution(outputs.flatten(end_dim=1))
            actions = distribution.get_actions()
            return actions, distribution.log_prob(actions)
        # As torch's Normal, whose checks would take as long as the networks
        noise = th.randn_like(outputs)
        actions = th.addcmul(outputs, self.log_std.exp(), noise)
        log_probs = -(0.5 * noise.square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(dim=2)
        return actions.flatten(end_dim=1), log_probs.flatten()


def _is_plain(policy: ActorCriticPolicy) -> bool:
    """Whether the actor is nothing but linear layers and elementwise activations on a flat box."""
    if type(policy) is not ActorCriticPolicy or type(policy.mlp_extractor) is not MlpExtractor or policy.use_sde:
        return False
    space = policy.observation_space
    is_flat = isinstance(space, spaces.Box) and not is_image_space(space)
    activations = list(policy.mlp_extractor.policy_net.children())[1::2]
    return (
        is_flat
        and type(policy.features_extractor) is FlattenExtractor
        and type(policy.action_dist) in PLAIN_DISTRIBUTIONS
        and all(type(module) in ELEMENTWISE for module in activations)
        and all(q.requires_grad for q in policy.parameters())
    )
