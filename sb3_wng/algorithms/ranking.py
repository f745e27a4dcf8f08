"""Which behavioural embedding for a task? What each one's natural gradient would gain, on a rollout."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from torch.nn.attention import SDPBackend, sdpa_kernel

from sb3_wng.algorithms.action_laws import action_law, release_graph
from sb3_wng.algorithms.arguments import check_integers, is_finite_number
from sb3_wng.algorithms.behavior_samples import STATE_EMBEDDINGS, BehaviorSampler
from sb3_wng.algorithms.policy_gradient import NaturalPolicyGradient
from sb3_wng.algorithms.rollouts import flat_rewards
from sb3_wng.algorithms.surrogate import PolicyBatch, policy_gradient
from sb3_wng.behavior import EMBEDDINGS, BehaviorEmbedding, Trajectory, cut_windows, make_embedding, spread
from sb3_wng.geometry import (
    BehaviorSample,
    EuclideanMetric,
    FactoredMetric,
    GaussNewtonMetric,
    Metric,
    Pathwise,
    ScoreFunction,
)
from sb3_wng.optim import KernelWassersteinMetric

CONTROLS = ("closed_form", "fisher", "euclidean")
Embedding = str | BehaviorEmbedding | Callable[[Trajectory], Any]


class EmbeddingRank(NamedTuple):
    """What the natural gradient of one metric would gain. All gains are of the surrogate, to first order.

    Lengths are relative: 1 means as far as the behaviour spreads. Movement of actions is the root of the closed-form W2^2
    over the spread of actions; of KL, the root of 2 KL per action dimension, which is about the same number where all
    dimensions spread alike; the row's own, the length in its metric, of an embedding in units of its spread.
    """

    embedding: str
    action_gain: float  # per unit of action movement, on the rollout that the direction is from
    kl_gain: float  # per unit of KL movement, likewise
    held_out_gain: float  # per unit of action movement, directions from one half of the rollout on the other half
    own_gain: float  # per unit of the row's own movement, likewise
    closed_form_gain: float  # as own_gain, but of the closed form's direction: where it is larger, the estimate is no use
    effective_rank: float  # directions that the kernel metric distinguishes; NaN for metrics without a factor
    noise: float  # share of squared own movement that is left when windows' scores get random signs; NaN without scores
    n_samples: int  # of behaviour in the rollout: states or windows
    damping: float  # the one with the largest held-out gain


def rank_embeddings(
    model: NaturalPolicyGradient,
    embeddings: Sequence[Embedding] | None = None,
    n_basis: int = 50,
    embedding_horizon: int = 32,
    dampings: Sequence[float] = (0.01, 0.1, 1.0),
    log_bandwidth: float = 1.0,
    seed: int = 0,
) -> list[EmbeddingRank]:
    r"""Compare kernel metrics of several embeddings, with the closed-form, Fisher and Euclidean metrics as controls.

    For each metric M, the natural direction :math:`d = (M + \lambda I)^{-1} g` and its gain :math:`g^\top d / |d|` per
    length. In action movement, :math:`|d|^2 = d^\top G d`, the closed form gains most by construction on the rollout that
    g and G are from (Cauchy-Schwarz, but for the damping). So directions are also estimated on one half of the rollout, and
    g and every length on the other, both ways, means. Halves are stretches of consecutive steps, the first or the last
    in turn over the environments.

    The rollout is the one in the model's buffer (after ``learn``, collected by the policy before its last update); an
    empty buffer is filled, which steps the environment as in ``learn``. Nothing else of the model changes. Call it between
    calls of ``learn`` or from a callback's ``on_rollout_end``.

    :param model: any of the policy gradients (``WNPG``, ``NPG``, ``PG``, ``BGPG``, ``BGWNPG``), whatever metric it learns with
    :param embeddings: aliases or functions as for ``WNPG``; all aliases if ``None``
    :param n_basis: of the kernel metrics; each half should hold twice as many windows
    :param embedding_horizon: steps per window of a trajectory
    :param dampings: to try for each metric, in its own relative units
    :param log_bandwidth: of the kernels
    :param seed: of basis points and resampled actions
    :return: highest ``held_out_gain`` first
    :raises ValueError: naming the argument
    """
    if not isinstance(model, NaturalPolicyGradient):
        raise ValueError(f"model must be a WNPG, NPG, PG, BGPG or BGWNPG, got {type(model).__name__}")
    named = _named_embeddings(embeddings)
    numbers = SimpleNamespace(n_basis=n_basis, embedding_horizon=embedding_horizon, seed=seed)
    check_integers(numbers, n_basis=1, embedding_horizon=1, seed=0)
    if not is_finite_number(log_bandwidth):
        raise ValueError(f"log_bandwidth must be a finite number, got {log_bandwidth!r}")
    if not (isinstance(dampings, Sequence) and dampings and all(is_finite_number(value) and value > 0 for value in dampings)):
        raise ValueError(f"dampings must be a sequence of finite numbers > 0, got {dampings!r}")
    with _undisturbed(model):
        if not model.rollout_buffer.full:
            _collect(model)
        rollout = _Rollout(model, embedding_horizon, n_basis, log_bandwidth, seed)
        measured = {name: rollout.control(name) for name in CONTROLS}
        measured |= {name: rollout.kernel(embedding) for name, embedding in named.items()}
    ranks = [_rank(name, metric, measured, rollout.whole, rollout.halves, dampings) for name, metric in measured.items()]
    return sorted(ranks, key=lambda rank: -rank.held_out_gain)


def format_table(ranks: Sequence[EmbeddingRank]) -> str:
    """Ranks as a Markdown table; see :class:`EmbeddingRank` for the meaning of its columns."""
    header = ["metric", "gain / action", "gain / KL", "held out", "own (closed form)", "rank (noise)"]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for rank in ranks:
        own = f"{rank.own_gain:.3f} ({rank.closed_form_gain:.3f})"
        effective = "" if math.isnan(rank.effective_rank) else f"{rank.effective_rank:.1f}"
        noise = "" if math.isnan(rank.noise) else f" ({100 * rank.noise:.0f} %)"
        gains = [f"{gain:.3f}" for gain in (rank.action_gain, rank.kl_gain, rank.held_out_gain)]
        rows.append([rank.embedding, *gains, own, effective + noise])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


class _View(NamedTuple):
    """The rollout or a half of it, with its gradient."""

    steps: th.Tensor
    windows: th.Tensor
    batch: PolicyBatch
    gradient: th.Tensor

    def gain(self, direction: th.Tensor, metric: Metric) -> float:
        """Predicted gain per unit of length; 0 for a direction that does not move."""
        length = direction.double().dot(metric.product(direction).double()).clamp_min(0).sqrt()
        return (self.gradient.double().dot(direction.double()) / length).item() if length > 0 else 0.0


class _Measured(NamedTuple):
    """A metric on the rollout and on each half, in relative units."""

    metric: Metric
    halves: Sequence[Metric]
    n_samples: int
    nulls: Sequence[Metric] = ()  # of each half, if its behaviour had nothing to do with the policy


class _Rollout:
    """A model's filled buffer in the order of its steps, and the metrics on it."""

    def __init__(self, model: NaturalPolicyGradient, horizon: int, n_basis: int, log_bandwidth: float, seed: int) -> None:
        self._model, self._horizon = model, horizon
        self._n_basis, self._log_bandwidth, self._seed = n_basis, log_bandwidth, seed
        self._buffer = buffer = _flattened(model.rollout_buffer)
        batch = model._policy_batch(buffer._get_samples(np.arange(buffer.buffer_size * buffer.n_envs)))
        self._unit = max(batch.old_law.spread().item(), 1e-12)
        self._estimate = policy_gradient(model.policy, model.actor_parameters, batch)
        windows = cut_windows(buffer.episode_starts.astype(bool), horizon)
        self.whole = _View(th.arange(len(batch.advantages)), th.arange(len(windows.mask)), batch, self._estimate.gradient)
        environment, step = np.divmod(np.arange(len(batch.advantages)), buffer.buffer_size)
        half = th.from_numpy((step >= buffer.buffer_size // 2) ^ (environment % 2 == 1))
        self.halves = [self._half(half == side, (half == side)[windows.index[:, 0]]) for side in (False, True)]

    def _half(self, steps: th.Tensor, windows: th.Tensor) -> _View:
        if windows.sum() < 2:
            raise ValueError(
                f"embedding_horizon={self._horizon} leaves a half of the rollout {windows.sum()} windows, but each needs at "
                "least 2: collect more steps or shorten it"
            )
        index = steps.nonzero().flatten()
        batch = self.whole.batch.rows(index.to(self.whole.batch.advantages.device))
        gradient = policy_gradient(self._model.policy, self._model.actor_parameters, batch).gradient
        return _View(index, windows.nonzero().flatten(), batch, gradient)

    def control(self, name: str) -> _Measured:
        """One of :data:`CONTROLS`."""
        whole, *halves = [self._control(name, view) for view in (self.whole, *self.halves)]
        return _Measured(whole, halves, len(self.whole.steps))

    def _control(self, name: str, view: _View) -> Metric:
        if name == "euclidean":
            return EuclideanMetric()
        law = action_law(self._model.policy.get_distribution(view.batch.observations))
        product, unit = (law.fisher_product, law.n_actions) if name == "fisher" else (law.wasserstein_product, self._unit)
        return GaussNewtonMetric(
            law.coordinates, self._model.actor_parameters, lambda tangent: product(tangent) / unit, self._model.cg_max_steps
        )

    def kernel(self, embedding: str | BehaviorEmbedding) -> _Measured:
        """The kernel metric of an embedding; draws the same numbers for each, whatever else is ranked."""
        generator = th.Generator().manual_seed(self._seed)
        sample, unit = self._sample(embedding, generator)
        is_of_states = isinstance(embedding, str)
        parts = [_rows(sample, half.steps if is_of_states else half.windows) for half in self.halves]
        nulls = [_without_effect(part, generator) for part in parts if isinstance(part.expectation_gradient, ScoreFunction)]
        metric = KernelWassersteinMetric(self._n_basis, self._log_bandwidth, seed=self._seed)
        whole, *others = [metric(part, 1 / unit) for part in (sample, *parts, *nulls)]
        return _Measured(whole, others[:2], len(sample.embeddings), others[2:])

    def _sample(self, embedding: str | BehaviorEmbedding, generator: th.Generator) -> tuple[BehaviorSample, float]:
        model, batch = self._model, self.whole.batch
        sampler = BehaviorSampler(model.policy, model.actor_parameters, model.observation_space, model.action_space, generator)
        if embedding == "actions":
            return sampler.actions(batch, self._estimate), max(batch.old_law.variance().item(), 1e-12)
        if isinstance(embedding, str):
            sample = sampler.actions_and_values(batch, self._estimate)
        else:
            sample = sampler.trajectories(self._buffer, embedding, self._horizon, flat_rewards(model))
        return sample, max(spread(sample.embeddings.detach()), 1e-12)


def _rows(sample: BehaviorSample, index: th.Tensor) -> BehaviorSample:
    """Some of the samples."""
    index = index.to(sample.embeddings.device)
    embeddings = sample.embeddings[index]
    estimator = sample.expectation_gradient
    if isinstance(estimator, ScoreFunction):
        estimator = replace(estimator, log_probs=estimator.log_probs[index])
    elif isinstance(estimator, Pathwise):
        estimator = replace(estimator, samples=embeddings)
    return BehaviorSample(embeddings, estimator, None if sample.context is None else sample.context[index])


def _without_effect(sample: BehaviorSample, generator: th.Generator) -> BehaviorSample:
    """Scores with random signs: as large as before, at the same points, but without effect on the behaviour."""
    estimator = sample.expectation_gradient
    assert isinstance(estimator, ScoreFunction)
    signs = 2 * th.randint(2, estimator.log_probs.shape, generator=generator) - 1
    signed = estimator.log_probs * signs.to(estimator.log_probs)
    return sample._replace(expectation_gradient=replace(estimator, log_probs=signed))


def _rank(
    name: str,
    own: _Measured,
    measured: dict[str, _Measured],
    whole: _View,
    halves: Sequence[_View],
    dampings: Sequence[float],
) -> EmbeddingRank:
    actions, fisher = measured["closed_form"], measured["fisher"]

    def held_out(metric: _Measured, damping: float, length: _Measured) -> float:
        directions = [part.solve(half.gradient, damping) for part, half in zip(metric.halves, halves, strict=True)]
        others = zip(halves[::-1], length.halves[::-1], directions, strict=True)
        return float(np.mean([half.gain(direction, part) for half, part, direction in others]))

    def squared_length(damping: float, metrics: Sequence[Metric]) -> float:
        directions = [part.solve(half.gradient, damping) for part, half in zip(actions.halves, halves, strict=True)]
        pairs = zip(metrics[::-1], directions, strict=True)
        return sum(direction.dot(metric.product(direction)).item() for metric, direction in pairs)

    damping = max(dampings, key=lambda value: held_out(own, value, actions))
    reference = max(dampings, key=lambda value: held_out(actions, value, actions))
    direction = own.metric.solve(whole.gradient, damping)
    return EmbeddingRank(
        name,
        whole.gain(direction, actions.metric),
        whole.gain(direction, fisher.metric),
        held_out(own, damping, actions),
        held_out(own, damping, own),
        held_out(actions, reference, own),
        own.metric.effective_rank() if isinstance(own.metric, FactoredMetric) else math.nan,
        squared_length(reference, own.nulls) / max(squared_length(reference, own.halves), 1e-30) if own.nulls else math.nan,
        own.n_samples,
        damping,
    )


def _named_embeddings(embeddings: Sequence[Embedding] | None) -> dict[str, str | BehaviorEmbedding]:
    """What to rank by the names that tables show; aliases of single states stay aliases."""
    if embeddings is None:
        embeddings = [*STATE_EMBEDDINGS, *EMBEDDINGS]
    if isinstance(embeddings, str) or not isinstance(embeddings, Sequence):
        raise ValueError(f"embeddings must be a sequence of aliases and functions, got {embeddings!r}")
    named: dict[str, str | BehaviorEmbedding] = {}
    for embedding in embeddings:
        name = embedding if isinstance(embedding, str) else getattr(embedding, "__name__", type(embedding).__name__)
        if name in named or name in CONTROLS:
            raise ValueError(f"embeddings must have different names, none of them a control's: {name!r} is taken")
        if isinstance(embedding, str) and embedding in STATE_EMBEDDINGS:
            named[name] = embedding
            continue
        try:
            named[name] = make_embedding(embedding)
        except ValueError as error:
            known = ", ".join(map(repr, STATE_EMBEDDINGS))
            raise ValueError(f"embeddings: {error}; embeddings of single states: {known}") from None
    return named


@contextlib.contextmanager
def _undisturbed(model: NaturalPolicyGradient) -> Iterator[None]:
    """The policy in evaluation mode, as in its updates; afterwards it trains as if it had not been asked."""
    was_training = model.policy.training
    model.policy.set_training_mode(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):  # attention's faster kernels have no second derivative
            yield
    finally:
        release_graph(model.policy, model.observation_space)
        model.policy.set_training_mode(was_training)


def _collect(model: NaturalPolicyGradient) -> None:
    """Fill the buffer as ``learn`` would."""
    if model.env is None:
        raise ValueError("model: its rollout buffer is empty and it has no env to fill it from; call set_env or learn first")
    log_folder, model.tensorboard_log = model.tensorboard_log, None  # no run of its own
    _, callback = model._setup_learn(model.n_steps * model.n_envs, reset_num_timesteps=False)
    model.tensorboard_log = log_folder
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


def _flattened(filled: RolloutBuffer) -> RolloutBuffer:
    """What the first call of ``get`` makes of a buffer, which itself stays as other callbacks expect it, as does the order in
    which training will shuffle it."""
    buffer = copy.copy(filled)
    buffer.observations = copy.copy(filled.observations)  # of a dict, each part is replaced
    if not buffer.generator_ready:
        state = np.random.get_state()  # noqa: NPY002
        next(buffer.get(batch_size=None))
        np.random.set_state(state)  # noqa: NPY002
    return buffer
