"""Which metric shapes the step of a policy gradient, and which one measures its length."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from sb3_wng.algorithms.behavior_samples import BehaviorSampler
from sb3_wng.algorithms.rollouts import flat_rewards, select
from sb3_wng.algorithms.surrogate import PolicyBatch, PolicyGradient
from sb3_wng.behavior import make_embedding, spread
from sb3_wng.geometry import (
    ActionLaw,
    BehaviorSample,
    EuclideanMetric,
    FactoredMetric,
    GaussNewtonMetric,
    Metric,
    SumMetric,
)

if TYPE_CHECKING:
    from sb3_wng.algorithms.policy_gradient import NaturalPolicyGradient


def policy_metrics(
    model: NaturalPolicyGradient, batch: PolicyBatch, estimate: PolicyGradient, unit: float
) -> tuple[Metric, Metric | None]:
    """The metric that shapes the direction, and one that measures its length where the first cannot.

    :param unit: what squared lengths are divided by
    """
    if model.metric in ("closed_form", "fisher"):
        return _closed_form_metric(model, batch, estimate.law, unit), None
    length_metric = _closed_form_metric(model, batch, estimate.law, unit) if model.step_rule == "trust_region" else None
    if model.metric == "euclidean":
        return EuclideanMetric(), length_metric
    kernel_metric = _kernel_metric(model, batch, estimate, unit)
    if model.metric == "kernel":
        return kernel_metric, length_metric
    closed_form = length_metric or _closed_form_metric(model, batch, estimate.law, unit)
    return SumMetric([closed_form, kernel_metric], model.cg_max_steps), closed_form


def _closed_form_metric(model: NaturalPolicyGradient, batch: PolicyBatch, law: ActionLaw, unit: float) -> GaussNewtonMetric:
    if model.sub_sampling_factor > 1:  # the metric needs fewer samples than the gradient
        law = model.action_law(select(batch.observations, slice(None, None, model.sub_sampling_factor)))
    product = law.fisher_product if model.metric == "fisher" else law.wasserstein_product
    return GaussNewtonMetric(
        law.coordinates, model.actor_parameters, lambda tangent: product(tangent) / unit, model.cg_max_steps
    )


def _kernel_metric(model: NaturalPolicyGradient, batch: PolicyBatch, estimate: PolicyGradient, unit: float) -> FactoredMetric:
    sample = behavior_sample(model, batch, estimate)
    if model.step_rule == "trust_region":  # the variance of what is embedded, of actions at each state
        is_action = model.embedding == "actions"
        unit = max(batch.old_law.variance().item() if is_action else spread(sample.embeddings.detach()), 1e-12)
    n_samples = len(sample.embeddings)
    if n_samples < 2 * model.n_basis and not model._has_warned_of_few_samples:
        model._has_warned_of_few_samples = True
        warnings.warn(
            f"The kernel metric has {n_samples} samples of behaviour for n_basis={model.n_basis} functions; it wants twice "
            "as many: collect more, lower n_basis or (for trajectories) embedding_horizon",
            stacklevel=2,
        )
    metric = model.kernel_metric(sample, scale=1 / unit)
    model.logger.record("train/effective_rank", metric.effective_rank())
    return metric


def behavior_sample(model: NaturalPolicyGradient, batch: PolicyBatch, estimate: PolicyGradient) -> BehaviorSample:
    """The rollout's behaviour in the space of ``embedding``, with its gradient."""
    sampler = BehaviorSampler(
        model.policy, model.actor_parameters, model.observation_space, model.action_space, model.kernel_metric.generator
    )
    if model.embedding == "actions":
        return sampler.actions(batch, estimate)
    if model.embedding == "actions_and_values":
        return sampler.actions_and_values(batch, estimate)
    embedding, rewards = make_embedding(model.embedding), flat_rewards(model)
    return sampler.trajectories(model.rollout_buffer, embedding, model.embedding_horizon, rewards)
