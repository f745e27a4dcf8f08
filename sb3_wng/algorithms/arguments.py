"""Checks of constructor arguments: a clear error that names the argument, before any training time is spent."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_wng.algorithms.behavior_samples import STATE_EMBEDDINGS
from sb3_wng.algorithms.penalty import DISTANCES
from sb3_wng.behavior import make_embedding

if TYPE_CHECKING:
    from sb3_wng.algorithms.policy_gradient import NaturalPolicyGradient

METRICS = ("closed_form", "kernel", "combined", "fisher", "euclidean")
STEP_RULES = ("trust_region", "fixed_rate", "optimizer")
OPTIONAL = ("target_kl", "policy_batch_size", "actor_learning_rate")  # may be None
DEFAULT_TARGET_DISTANCE = 0.02
DEFAULT_MAX_GRAD_NORM = 0.5
DEFAULT_STEP_SIZE = 0.1
SCHEDULES = ("target_distance", "target_kl", "step_size", "actor_learning_rate")  # may be functions of remaining progress


def check_policy_gradient_arguments(model: NaturalPolicyGradient) -> None:
    """:raises ValueError: (AssertionError for the rollout's size, as SB3) naming the argument and what it may be"""
    if not issubclass(model.policy_class, ActorCriticPolicy):
        raise ValueError(
            f"policy: {model.policy_class.__name__} is no ActorCriticPolicy: without a density of actions there is no "
            "likelihood gradient and no KL, and without values no critic. Evolution strategies (ES, WNES, ...) need neither"
        )
    if "RecurrentActorCriticPolicy" in [base.__name__ for base in model.policy_class.__mro__]:  # Contrib's, an extra
        raise ValueError(f"policy: {model.policy_class.__name__} is recurrent, and recurrent policies are not supported")
    check_choice("metric", model.metric, METRICS)
    check_choice("step_rule", model.step_rule, STEP_RULES)
    check_integers(model, n_steps=1, batch_size=1, n_policy_updates=1, policy_batch_size=1, cg_max_steps=1)
    check_integers(model, line_search_max_iter=0, n_critic_updates=0, n_basis=1, embedding_horizon=1, sub_sampling_factor=1)
    check_integers(model, adaptive_damping=0)
    check_positive(model, "target_distance", "target_kl", "step_size", "std_weight", "max_grad_norm")
    check_fractions(model, "gamma", "gae_lambda")
    check_log_bandwidth(model.log_bandwidth)
    if not (is_finite_number(model.cg_damping) and model.cg_damping >= 0):
        raise ValueError(f"cg_damping must be a finite number >= 0, got {model.cg_damping}")
    if model.cg_damping == 0 and (model.metric == "kernel" or model.adaptive_damping):
        raise ValueError("cg_damping must be > 0 for metric='kernel' and for adaptive_damping")
    check_embedding(model)
    check_penalty(model)
    warn_of_no_effect(model)
    if not 0 < model.line_search_shrinking_factor < 1:
        raise ValueError(f"line_search_shrinking_factor must be in (0, 1), got {model.line_search_shrinking_factor}")
    if model.step_rule == "trust_region":
        if model.metric == "fisher" and model.target_kl is None:
            raise ValueError("metric='fisher' measures its trust region by target_kl, a number > 0 (e.g. 0.01 x action dim)")
        if model.policy_batch_size is not None and model.n_penalized_epochs == 0:
            raise ValueError("policy_batch_size must be None with step_rule='trust_region': its region is the whole rollout's")
    elif model.step_rule == "fixed_rate" and model.metric != "fisher" and model.normalize_advantage:
        warnings.warn(
            "step_rule='fixed_rate' with normalize_advantage=True: the gradient of such advantages grows as 1/spread, and so "
            "does the step. Pass normalize_advantage=False (and scale rewards by VecNormalize), or use the trust region",
            stacklevel=5,
        )
    if model.env is not None:
        check_batch_size(model.n_steps, model.env.num_envs, model.batch_size, model.normalize_advantage)
        check_kernel_samples(model, model.n_steps, model.env.num_envs)


def check_kernel_samples(model: NaturalPolicyGradient, n_steps: int, n_envs: int) -> None:
    """:raises ValueError: for a rollout with less than two samples of what a kernel metric compares"""
    if model.uses_kernel and not is_of_states(model):
        check_windows(n_steps, n_envs, model.embedding_horizon)
    elif model.uses_kernel:
        check_smallest_minibatch(n_steps * n_envs, minibatch_size(model))


def check_saved_class(model: Any) -> None:
    """Note a new model's class for its file.

    :raises ValueError: in ``load()``, for a file of another algorithm, whose arguments would be taken for this one's
    """
    own = [base.__name__ for base in type(model).__mro__]
    if not model.class_names and model.num_timesteps > 0:
        raise ValueError(
            f"this file was not saved by an algorithm of sb3_wng: load it with its own class, not {own[0]}.load. A policy "
            "gradient can go on from its policy: model.policy.load_state_dict(other.policy.state_dict())"
        )
    model.class_names = model.class_names or own
    if own[0] not in model.class_names and model.class_names[0] not in own:  # neither is the other's base
        raise ValueError(f"this file is of {model.class_names[0]}: use {model.class_names[0]}.load, not {own[0]}.load")


def minibatch_size(model: NaturalPolicyGradient) -> int | None:
    """Samples that a metric is estimated from; ``None``: the whole rollout, as in a trust region's natural steps."""
    return None if model.step_rule == "trust_region" else model.policy_batch_size


def is_of_states(model: NaturalPolicyGradient) -> bool:
    """Whether the embedding is one of single states, not of trajectories."""
    return isinstance(model.embedding, str) and model.embedding in STATE_EMBEDDINGS


def warn_of_no_effect(model: NaturalPolicyGradient) -> None:
    """Warn of arguments that nothing reads."""
    unused = []
    if model.wasserstein_coef == 0 and model.reference is not None:
        unused.append("reference has no effect with wasserstein_coef=0")
    if model.wasserstein_coef == 0 and not model.uses_kernel and model.embedding != "actions":
        unused.append(f"embedding has no effect with metric={model.metric!r} and without a penalty: pass metric='kernel'")
    if model.diagonal_damping and model.metric != "kernel":
        unused.append(f"diagonal_damping has no effect with metric={model.metric!r}")
    is_radius = model.step_rule == "trust_region" and model.metric != "fisher"
    has_epochs = model.step_rule == "optimizer" or model.n_penalized_epochs > 0
    if model.max_grad_norm != DEFAULT_MAX_GRAD_NORM and not has_epochs:
        unused.append(f"max_grad_norm has no effect with step_rule={model.step_rule!r}")
    if model.step_size != DEFAULT_STEP_SIZE and model.step_rule != "fixed_rate":
        unused.append(f"step_size has no effect with step_rule={model.step_rule!r}")
    if model.target_distance != DEFAULT_TARGET_DISTANCE and not is_radius and not model.adaptive_coef:
        rule = f"step_rule={model.step_rule!r} and metric={model.metric!r}"
        without = "adaptive_coef=True" if model.wasserstein_coef else f"a penalty, with {rule}"
        unused.append(f"target_distance has no effect without {without}")
    for message in unused:
        warnings.warn(message, stacklevel=6)


def check_embedding(model: NaturalPolicyGradient) -> None:
    """:raises ValueError: for an unknown embedding, or one of trajectories where only minibatches of states are seen"""
    if is_of_states(model):
        return
    try:
        make_embedding(model.embedding)
    except ValueError as error:
        raise ValueError(f"{error}; embeddings of single states: {', '.join(map(repr, STATE_EMBEDDINGS))}") from None
    if model.uses_kernel and minibatch_size(model) is not None:
        raise ValueError(
            "policy_batch_size must be None for a kernel metric with an embedding of trajectories, cut from the rollout"
        )


def check_penalty(model: NaturalPolicyGradient) -> None:
    """:raises ValueError: for a penalty that cannot be computed or would have no effect, saying what to pass instead"""
    check_choice("distance", model.distance, DISTANCES)
    check_integers(model, n_penalized_epochs=0)
    check_positive(model, "entropic_reg", "actor_learning_rate")
    if not is_finite_number(model.wasserstein_coef):
        raise ValueError(
            f"wasserstein_coef must be a finite number (> 0 attracts, < 0 repels), got {model.wasserstein_coef!r}"
        )
    if model.adaptive_coef and not model.wasserstein_coef > 0:
        raise ValueError(
            f"adaptive_coef needs wasserstein_coef > 0, got {model.wasserstein_coef}: raising a coefficient lowers the "
            "distance only where it attracts"
        )
    if model.adaptive_coef and model.step_rule == "trust_region" and model.n_penalized_epochs == 0:
        raise ValueError("adaptive_coef has nothing to adapt to in a trust region, which ends at target_distance by itself")
    if model.wasserstein_coef == 0:
        return
    if model.reference is not None and model.embedding == "actions_and_values":
        raise ValueError("reference: a behaviour that is given has no resampled actions; pass embedding='actions'")
    if model.distance in ("closed_form", "total_variation", "kl"):
        if not is_of_states(model) or model.reference is not None:
            raise ValueError(
                f"distance={model.distance!r} compares the actions of successive policies; with a reference or an embedding "
                "of trajectories pass distance='sinkhorn' or 'dual'"
            )
    elif is_of_states(model) and model.env is not None and not isinstance(model.action_space, spaces.Box):
        raise ValueError(
            f"distance={model.distance!r} of single actions needs a Box action space; for {model.action_space} pass "
            "distance='closed_form' or 'total_variation', or compare trajectories (embedding='action_sequence')"
        )
    elif is_of_states(model) and model.embedding == "actions" and model.reference is None:
        warnings.warn(
            f"distance={model.distance!r} with embedding='actions' compares the actions of all states together: a policy that "
            "exchanges actions between states has not moved. distance='closed_form' compares them state by state",
            stacklevel=6,
        )
    if model.distance == "total_variation" and isinstance(model.action_space, spaces.Box):
        raise ValueError("distance='total_variation' needs discrete actions: between Gaussians it has no closed form")


def is_finite_number(value: Any) -> bool:
    """Whether ``value`` is a real number and neither NaN nor infinite."""
    return isinstance(value, numbers.Real) and math.isfinite(value)


def check_log_bandwidth(value: Any) -> None:
    """:raises ValueError: for what is no exponent of ten that a bandwidth can have"""
    if not (is_finite_number(value) and abs(value) <= 10):
        raise ValueError(f"log_bandwidth must be a number from -10 to 10, usually 0 to 1, got {value!r}")


def check_choice(name: str, value: Any, accepted: Sequence[str]) -> None:
    """:raises ValueError: unless ``value`` is one of ``accepted``"""
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, got {value!r}")


def make_schedule(value: float | Schedule) -> FloatSchedule:
    """SB3's schedules, of NumPy's numbers too."""
    return FloatSchedule(value if callable(value) else float(value))


def check_integers(model: object, **minima: int) -> None:
    """:raises ValueError: for an attribute that is not an integer of at least its minimum (``None`` is, where it has a use)"""
    for name, minimum in minima.items():
        value = getattr(model, name)
        if value is None and name in OPTIONAL:
            continue
        if not (isinstance(value, (int, np.integer)) and value >= minimum):
            raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}")


def check_fractions(model: object, *names: str) -> None:
    """:raises ValueError: for an attribute that is not a number from 0 to 1"""
    for name in names:
        value = getattr(model, name)
        if not (is_finite_number(value) and 0 <= value <= 1):
            raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}")


def check_positive(model: object, *names: str) -> None:
    """:raises ValueError: for an attribute that is not a finite number > 0 (``None`` and schedules are, where of use)"""
    for name in names:
        value = getattr(model, name)
        if value is None and name in OPTIONAL:
            continue
        if callable(value) and name in SCHEDULES:
            name, value = f"{name} at the start", value(1.0)
        if not (is_finite_number(value) and value > 0):
            raise ValueError(f"{name} must be a finite number > 0, got {value!r}")


def check_smallest_minibatch(n_samples: int, policy_batch_size: int | None) -> None:
    """:raises ValueError: for a kernel metric that would have to tell a law from a single sample"""
    size = min(policy_batch_size or n_samples, n_samples)
    smallest = n_samples % size or size
    if smallest < 2:
        raise ValueError(
            f"policy_batch_size={policy_batch_size} leaves a minibatch of {smallest} of the rollout's {n_samples} samples; "
            "metric='kernel' needs at least 2"
        )


def check_windows(n_steps: int, n_envs: int, horizon: int) -> None:
    """:raises ValueError: for a kernel metric that would have to tell a law from a single trajectory"""
    if n_envs * -(-n_steps // horizon) < 2:
        raise ValueError(
            f"embedding_horizon={horizon} makes one trajectory of a rollout of {n_envs} x {n_steps} steps; a kernel metric "
            "needs at least two, and wants twice n_basis: lower it, or raise n_steps"
        )


def check_batch_size(n_steps: int, n_envs: int, batch_size: int, normalize_advantage: bool) -> None:
    """:raises AssertionError: as SB3's algorithms do, for a rollout of one step whose advantages cannot be normalized"""
    buffer_size = n_steps * n_envs
    assert buffer_size > 1 or not normalize_advantage, (
        f"`n_steps * n_envs` must be greater than 1 to normalize advantages. Currently n_steps={n_steps} and n_envs={n_envs}"
    )
    if buffer_size % batch_size > 0:
        warnings.warn(
            f"You have specified a mini-batch size of {batch_size}, but the rollout has n_steps * n_envs = {buffer_size} "
            f"samples: after every {buffer_size // batch_size} full mini-batches there will be a truncated mini-batch of "
            f"size {buffer_size % batch_size}. We recommend a `batch_size` that is a factor of `n_steps * n_envs`.",
            stacklevel=6,
        )
