"""One member of a population: an algorithm of its own that leaves the rollout and the direction to the population."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch as th
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parameters_to_vector

from sb3_wng.algorithms.critic import fit_critic
from sb3_wng.algorithms.npg import NPG
from sb3_wng.algorithms.pg import PG
from sb3_wng.algorithms.policy_gradient import NaturalPolicyGradient
from sb3_wng.algorithms.policy_metrics import policy_metrics
from sb3_wng.algorithms.rollouts import policy_actions, refresh_batch_statistics, rollout_in_order, select
from sb3_wng.algorithms.wnpg import WNPG
from sb3_wng.optim import StepReport, Trial
from sb3_wng.population.baselines import LinearBaseline

CHUNK = 2500  # samples per backward pass: fewer have more overhead, more do not fit a cache


@dataclass(frozen=True)
class Kind:
    """What a population's particles are.

    :param algorithm: whose gradient, step and critic they have
    :param arguments: their defaults
    :param is_natural: each particle preconditions its direction and takes its own step; else Adam takes all steps
    :param has_critic: otherwise returns-to-go take the place of advantages
    :param has_baseline: linear, subtracted from returns-to-go
    """

    algorithm: type[NaturalPolicyGradient]
    arguments: dict[str, Any]
    is_natural: bool
    has_critic: bool = True
    has_baseline: bool = False


_PLAIN = {"metric": "euclidean", "step_rule": "optimizer"}
_REINFORCE = Kind(NaturalPolicyGradient, {**_PLAIN, "n_critic_updates": 0}, is_natural=False, has_critic=False)
KINDS = {
    "a2c": Kind(NaturalPolicyGradient, {**_PLAIN, "batch_size": 256, "n_critic_updates": 5}, is_natural=False),
    "pg": _REINFORCE,
    "pg_linear": replace(_REINFORCE, has_baseline=True),
    "npg": Kind(NPG, {}, is_natural=True),
    "wnpg": Kind(WNPG, {}, is_natural=True),
}
CLASSES = {A2C: "a2c", PG: "pg", NPG: "npg", WNPG: "wnpg"}


def kind_name(algorithm: Any) -> str:
    """The name of an algorithm given by name or class.

    :raises ValueError: for one that has no single gradient of the return, or is unknown
    """
    name = algorithm.lower() if isinstance(algorithm, str) else CLASSES.get(algorithm)
    if name in KINDS:
        return name
    known = f"algorithm must be one of {', '.join(map(repr, KINDS))} or one of these classes"
    if name == "ppo" or (isinstance(algorithm, type) and issubclass(algorithm, PPO)):
        raise ValueError(
            "algorithm='ppo' takes many clipped minibatch steps from each rollout: there is no one gradient of the return for "
            f"the particles to share. 'npg' and 'wnpg' bound their step, too; {known}"
        )
    raise ValueError(f"{known}, got {algorithm!r}")


class Particle:
    """An algorithm without an environment, fed with its share of the population's rollouts.

    :param kind: see :data:`KINDS`
    :param learner: set up; its policy is the particle's
    """

    def __init__(self, kind: Kind, learner: NaturalPolicyGradient) -> None:
        self.kind = kind
        self.learner = learner
        self.baseline = LinearBaseline(learner.observation_space).to(learner.device) if kind.has_baseline else None
        learner.set_logger(Logger(None, []))  # the population logs means over the particles

    @property
    def policy(self) -> ActorCriticPolicy:
        return self.learner.policy

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The actor's, in the order of the matrix's columns."""
        return self.learner.actor_parameters

    def begin(self, buffer: RolloutBuffer, progress_remaining: float, in_order: bool = False) -> None:
        """Take in a rollout.

        :param buffer: this particle's share
        :param progress_remaining: of training, from 1 to 0
        :param in_order: keep steps as windows are cut, one environment after the other
        """
        learner = self.learner
        learner.rollout_buffer = buffer
        learner._current_progress_remaining = progress_remaining
        if self.baseline is not None:
            self.features = self.baseline.features(buffer)
            self.returns = th.as_tensor(buffer.returns).flatten()
            buffer.advantages = buffer.returns - self.baseline(self.features).cpu().numpy().reshape(buffer.returns.shape)
        self.rollout = rollout_in_order(buffer) if in_order else next(buffer.get(batch_size=None))
        refresh_batch_statistics(self.policy, self.rollout.observations)
        learner.policy.set_training_mode(False)
        self.advantages = standardized(self.rollout.advantages) if learner.normalize_advantage else self.rollout.advantages

    def gradient(self) -> th.Tensor:
        """Of the return, by the particle's own advantages, shape (p,)."""
        actions = policy_actions(self.rollout.actions, self.learner.action_space)
        return advantage_gradient(self.policy, self.parameters, self.rollout.observations, actions, self.advantages)

    @sdpa_kernel(SDPBackend.MATH)  # attention's faster kernels have no second derivative
    def natural_step(self, direction: th.Tensor, share: float) -> StepReport:
        """Precondition a direction by the own metric and go as far as the own step rule allows.

        A line search would ask whether the surrogate has improved; but the direction ascends
        ``share * surrogate + rest . theta``, what the other particles add being constant, and that is what is asked.

        :param direction: Stein's, shape (p,)
        :param share: weight of the own gradient in it
        """
        learner, start = self.learner, parameters_to_vector(self.parameters).detach()
        batch = learner._policy_batch(self.rollout)._replace(advantages=self.advantages)
        unit = learner._unit(batch.old_law)
        learner.natural_gradient.step_rule = learner._make_step_rule(unit)
        estimate = learner.policy_gradient(batch)
        metric, length_metric = policy_metrics(learner, batch, estimate, unit)
        rest = direction - share * estimate.gradient

        def evaluate() -> Trial:
            trial = learner._trial(learner.measure(batch), unit)
            move = parameters_to_vector(self.parameters).detach() - start
            gain = share * (trial.objective - estimate.objective) + rest.dot(move).item()
            return trial._replace(objective=gain)

        report = learner.natural_gradient.step(self.parameters, direction, metric, 0.0, evaluate, length_metric)
        learner._log_policy_update([report], learner.measure(batch))
        return report

    def update_critic(self) -> None:
        """Fit the critic or the baseline to the rollout's returns."""
        if self.baseline is not None:
            self.baseline.fit(self.features, self.returns)
        self.learner._update_learning_rate(self.policy.optimizer)
        fit_critic(self.learner, self.rollout)
        if self.kind.has_critic:
            self.learner._n_updates += 1
            self.learner._log_update()

    def become(self, other: Particle) -> None:
        """Take over everything that another particle has learnt."""
        self.policy.load_state_dict(other.policy.state_dict())
        # a deep copy: an optimiser takes over the tensors that it is given
        self.policy.optimizer.load_state_dict(copy.deepcopy(other.policy.optimizer.state_dict()))
        self.learner.natural_gradient.load_state_dict(other.learner.natural_gradient.state_dict())
        if self.baseline is not None and other.baseline is not None:
            self.baseline.load_state_dict(other.baseline.state_dict())


def standardized(advantages: th.Tensor) -> th.Tensor:
    """With mean 0 and standard deviation 1, so that a temperature means the same on every task."""
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def advantage_gradient(
    policy: ActorCriticPolicy,
    parameters: Sequence[nn.Parameter],
    observations: PyTorchObs,
    actions: th.Tensor,
    advantages: th.Tensor,
) -> th.Tensor:
    """Gradient of the mean of A log pi(a|s), which is the surrogate's at the policy that acted; shape (p,).

    Same value in pieces: no graph of a whole rollout is kept.
    """
    total = th.zeros(sum(q.numel() for q in parameters), device=advantages.device)
    for start in range(0, len(advantages), CHUNK):
        rows = slice(start, start + CHUNK)
        log_prob = policy.get_distribution(select(observations, rows)).log_prob(actions[rows])
        objective = (log_prob * advantages[rows]).sum() / len(advantages)
        grads = th.autograd.grad(objective, list(parameters), allow_unused=True, materialize_grads=True)
        total += th.cat([grad.reshape(-1) for grad in grads])
    with th.no_grad():  # or the distribution keeps the graph, which cannot be copied with the policy
        policy.get_distribution(select(observations, slice(1)))
    return total


class Optimizers(nn.Module):
    """Several optimisers as one module, so that SB3 saves and loads them together."""

    def __init__(self, optimizers: Sequence[th.optim.Optimizer]) -> None:
        super().__init__()
        self.optimizers = list(optimizers)

    def get_extra_state(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def set_extra_state(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(copy.deepcopy(state))  # it takes over the tensors that it is given
