"""Whole episodes for many candidate parameter vectors: what is asked, and what comes back.

An evolution strategy knows nothing of where its candidates are tried. It hands an :class:`Evaluator` one
:class:`Generation`, small enough to send anywhere because candidates are rebuilt from seeds, and gets one
:class:`Outcome` per candidate, as they finish, that depends on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Candidate(NamedTuple):
    """One episode to be run: parameters + sign * delta_std * noise(pair), in an environment reset with ``seed``."""

    pair: int  # which noise vector
    sign: int  # +1 and -1: the two of an antithetic pair; 0: the parameters themselves
    seed: int  # of the environment's reset and of the policy's own noise


class Generation(NamedTuple):
    """All that the candidates of one iteration have in common."""

    parameters: NDArray[np.float32]  # (p,), the trained ones
    frozen: dict[str, NDArray[np.float32]]  # all others, by name
    delta_std: float
    noise_seed: tuple[int, ...]  # noise(pair) is drawn from (*noise_seed, pair)
    observation_statistics: dict[str, NDArray[np.float64]]  # of the policy's normaliser; empty without one
    candidates: Sequence[Candidate]


class Outcome(NamedTuple):
    """One finished episode."""

    episode_return: float  # of unnormalised rewards
    length: int
    embedding: NDArray[np.float32] | None  # (d,); None where no embedding is asked for, or after a failure
    observation_moments: dict[str, NDArray[np.float64]]  # see ObservationNormalizer; empty without one
    error: str | None = None  # why the episode failed (an exception, non-finite numbers, a time-out); return is then NaN
    is_success: bool | None = None  # what the last step's info says, if it does
    monitored: dict[str, float] | None = None  # return and length as a Monitor inside of other wrappers has them
    is_fatal: bool = False  # embedding or policy are at fault, not the environment: training ends whatever env_failure says


class WorkerLostError(RuntimeError):
    """Workers keep dying."""


class Evaluator(Protocol):
    """Runs episodes somewhere: in the columns of a VecEnv, in local processes, on a cluster."""

    def __call__(self, generation: Generation) -> Iterator[tuple[int, Outcome]]:
        """Position in ``generation.candidates`` and outcome of every candidate, in any order, each as soon as it is known.

        A failed episode is an outcome with an ``error``, not an exception. Closing the iterator gives up the rest.
        """

    def close(self) -> None:
        """Give back processes and connections."""


def noise(generation_seed: tuple[int, ...], pair: int, n_parameters: int) -> NDArray[np.float32]:
    """Standard normal perturbation of a pair, the same on every machine; shape (p,)."""
    return np.random.default_rng((*generation_seed, pair)).standard_normal(n_parameters, dtype=np.float32)


def candidate_parameters(generation: Generation, candidate: Candidate) -> NDArray[np.float32]:
    """The parameter vector of a candidate, shape (p,)."""
    if candidate.sign == 0:
        return generation.parameters
    perturbation = noise(generation.noise_seed, candidate.pair, len(generation.parameters))
    return generation.parameters + np.float32(candidate.sign * generation.delta_std) * perturbation


def stack_embeddings(outcomes: Sequence[Outcome]) -> NDArray[np.float32]:
    """Embeddings of all episodes, shape (n, d); a failed one gets the mean of the others.

    :param outcomes: of which one at least did not fail
    :raises ValueError: if their dimensions differ
    """
    known = [outcome.embedding for outcome in outcomes if outcome.embedding is not None]
    sizes = sorted({len(point) for point in known})
    if len(sizes) > 1:
        raise ValueError(f"embeddings must have the same dimension for all episodes, got {sizes}: set embedding_horizon")
    mean = np.mean(known, axis=0, dtype=np.float32)
    return np.stack([mean if outcome.embedding is None else outcome.embedding for outcome in outcomes])
