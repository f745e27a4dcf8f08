"""Checks of constructor arguments: a clear error that names the argument, before any training time is spent."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any


def check_choice(name: str, value: Any, accepted: Sequence[str]) -> None:
    """:raises ValueError: unless ``value`` is one of ``accepted``"""
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, got {value!r}")


def check_integers(model: object, **minima: int) -> None:
    """:raises ValueError: for an attribute that is not an integer of at least its minimum (``None`` passes)"""
    for name, minimum in minima.items():
        value = getattr(model, name)
        if value is not None and (value != int(value) or value < minimum):
            raise ValueError(f"{name} must be an integer >= {minimum}, got {value}")


def check_positive(model: object, *names: str) -> None:
    """:raises ValueError: for an attribute that is not a finite number > 0 (``None`` and schedules pass)"""
    for name in names:
        value = getattr(model, name)
        if value is not None and not callable(value) and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number > 0, got {value}")


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
            stacklevel=5,
        )
