"""Whole episodes in other processes, on this machine or on a Ray cluster, through one piece of code.

Outcomes do not depend on who runs what: noise comes from seeds, and each worker computes in one thread. So work is dealt as
workers become free, one that is lost is replaced, and its episodes are run again.
"""

from __future__ import annotations

import math
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.vec_env import VecEnv

from sb3_wng.algorithms.evaluation import Generation, Outcome, WorkerLostError
from sb3_wng.algorithms.evolution_policies import EvolutionPolicy
from sb3_wng.algorithms.worker_backends import Backend, LocalBackend, RayBackend, Worker
from sb3_wng.algorithms.worker_environments import MakeEnv, environment_maker
from sb3_wng.algorithms.worker_process import Package, pack, run_chunk, set_up
from sb3_wng.behavior import BehaviorEmbedding

# Short episodes travel together, so that they are not outweighed by messages of half a millisecond, but never so many that
# workers have less than a few chunks each: the last one to finish is waited for
CHUNK_SECONDS = 0.05
MIN_CHUNKS_PER_WORKER = 4
MAX_LOSSES = 3  # in a row, of workers that run the same episode or that are about to start
START_TIMEOUT = 300.0  # seconds in which nothing runs because no worker is there


@dataclass
class _Chunk:
    """Candidates that travel together, by their positions."""

    generation: int
    positions: Sequence[int]
    losses: int = 0

    def split(self) -> Iterator[_Chunk]:
        """One by one, so that the next failure has a name."""
        return (_Chunk(self.generation, [position], self.losses) for position in self.positions)


@dataclass
class _Slot:
    """The place of one worker: it starts (a future without chunk), is free (neither), or runs a chunk (both)."""

    worker: Worker
    future: Future[Any] | None
    chunk: _Chunk | None = None
    since: float = 0.0
    generation: int = -1  # the last that it has got
    losses: int = 0


class WorkerEvaluator:
    """An :class:`~sb3_wng.algorithms.evaluation.Evaluator` with persistent processes, which start with the first generation.

    :param backend: where processes come from
    :param package: what each of them keeps
    :param episode_timeout: seconds after which an episode has failed and its process is killed; ``None``: never
    """

    def __init__(self, backend: Backend, package: Package, episode_timeout: float | None) -> None:
        self._backend = backend
        self._package = package
        self._shared_package: Any = None
        self._timeout = math.inf if episode_timeout is None else episode_timeout
        self._slots: list[_Slot] = []
        self._episode_seconds = math.inf  # mean of the last generation; unknown: one episode per chunk
        self._generation = -1
        self._finalizer = weakref.finalize(self, _close, self._slots, backend)

    def __call__(self, generation: Generation) -> Iterator[tuple[int, Outcome]]:
        """Position and outcome of every candidate as soon as it is known; closing the iterator gives up the rest.

        :raises WorkerLostError: when workers die three times in a row, at the same episode or at their start
        :raises RuntimeError: when workers cannot make the environment, with their traceback
        """
        try:
            yield from self._run(generation)
        except GeneratorExit:  # chunks that still run are thrown away as they finish
            raise
        except BaseException:  # nothing runs on behind an error or Ctrl-C
            self.close()
            raise

    def close(self) -> None:
        """End all processes; a later call starts new ones."""
        _close(self._slots, self._backend)
        self._shared_package = None

    def _run(self, generation: Generation) -> Iterator[tuple[int, Outcome]]:
        self._start()
        self._generation += 1
        candidates = generation.candidates
        size = self._chunk_size(len(candidates))
        queue = deque(
            _Chunk(self._generation, range(i, min(i + size, len(candidates)))) for i in range(0, len(candidates), size)
        )
        shared = self._backend.share(generation._replace(candidates=()))
        n_missing, busy_seconds = len(candidates), 0.0
        outcomes: list[tuple[int, Outcome]] = []
        while n_missing:
            for slot in self._slots:
                if slot.future is None and queue:
                    self._send(slot, queue.popleft(), shared, candidates)
            yield from outcomes  # while workers are busy
            outcomes = []
            for slot in self._wait():
                found, seconds = self._settle(slot, queue, generation)
                busy_seconds += seconds
                outcomes += found
            n_missing -= len(outcomes)
        self._episode_seconds = busy_seconds / max(1, len(candidates))
        yield from outcomes

    def _start(self) -> None:
        if not self._slots:
            self._backend.open()
            self._shared_package = self._backend.share(self._package)
            # extended one by one: the finalizer must know each of them
            for _ in range(self._backend.n_jobs):
                self._slots.append(self._new_slot())

    def _new_slot(self, losses: int = 0) -> _Slot:
        worker = self._backend.start()
        return _Slot(worker, worker.submit(set_up, self._shared_package), losses=losses)

    def _chunk_size(self, n_candidates: int) -> int:
        largest = math.ceil(n_candidates / (MIN_CHUNKS_PER_WORKER * self._backend.n_jobs))
        return max(1, min(largest, int(CHUNK_SECONDS / self._episode_seconds)))

    def _send(self, slot: _Slot, chunk: _Chunk, shared: Any, candidates: Sequence[Any]) -> None:
        """Run a chunk on a free worker; the weights go along once a generation."""
        news = shared if slot.generation != chunk.generation else None
        slot.chunk, slot.since, slot.generation = chunk, time.monotonic(), chunk.generation
        slot.future = slot.worker.submit(run_chunk, chunk.generation, news, [candidates[i] for i in chunk.positions])

    def _wait(self) -> list[_Slot]:
        """The workers that have finished, failed, or run for too long."""
        slots = {slot.future: slot for slot in self._slots if slot.future is not None}
        starts = [slot.since for slot in slots.values() if slot.chunk is not None]
        patience = START_TIMEOUT if not starts else max(0.0, min(starts) + self._timeout - time.monotonic())
        done, _ = wait(slots, None if patience == math.inf else patience, FIRST_COMPLETED)
        if not done and not starts:
            raise WorkerLostError(
                f"no worker ({self._backend.name}) began within {START_TIMEOUT:.0f} s: is a core free, and can the "
                "environment be made?"
            )
        late = time.monotonic() - self._timeout
        return [slot for future, slot in slots.items() if future in done or (slot.chunk is not None and slot.since <= late)]

    def _settle(self, slot: _Slot, queue: deque[_Chunk], generation: Generation) -> tuple[list[tuple[int, Outcome]], float]:
        """Outcomes of what a worker did, and the seconds it took; what must be run again goes to the queue."""
        future, chunk, seconds = slot.future, slot.chunk, time.monotonic() - slot.since
        assert future is not None
        is_current = chunk is not None and chunk.generation == self._generation
        if not future.done():
            return self._end_overdue(slot, queue), seconds
        slot.future = slot.chunk = None
        try:
            result = future.result()
        except Exception as error:
            if not self._backend.is_loss(error):
                raise
            self._replace(slot, queue, generation, chunk if is_current else None, error)
            return [], 0.0
        if chunk is None:
            if result is not None:
                raise RuntimeError(f"workers cannot make the policy or the environment:\n{result}")
        elif result is None:
            self._replace(slot, queue, generation, chunk if is_current else None, None)
        else:
            slot.losses = 0
            if is_current:
                return list(zip(chunk.positions, result, strict=True)), seconds
        return [], 0.0

    def _end_overdue(self, slot: _Slot, queue: deque[_Chunk]) -> list[tuple[int, Outcome]]:
        """Kill a worker whose episode does not end. One of several episodes: run them one by one to know which."""
        chunk = slot.chunk
        assert chunk is not None
        self._restart(slot, losses=0)
        if chunk.generation != self._generation:
            return []
        if len(chunk.positions) > 1:
            queue.extendleft(chunk.split())
            return []
        error = f"TimeoutError: the episode did not end within episode_timeout = {self._timeout:g} s"
        return [(chunk.positions[0], Outcome(float("nan"), 0, None, {}, error))]

    def _replace(
        self, slot: _Slot, queue: deque[_Chunk], generation: Generation, chunk: _Chunk | None, error: Exception | None
    ) -> None:
        """Start a new worker in the place of a lost one and put its episodes back.

        :raises WorkerLostError: after too many losses in a row
        """
        losses = slot.losses + 1
        if chunk is not None:
            chunk.losses += 1
            losses = max(losses, chunk.losses)
            queue.extendleft(chunk.split())
        if losses >= MAX_LOSSES:
            seeds = ", ".join(str(generation.candidates[i].seed) for i in chunk.positions) if chunk is not None else ""
            where = f"in the episode with seed {seeds}" if chunk is not None else "before an episode began"
            raise WorkerLostError(
                f"worker processes died {losses} times in a row {where}: killed from outside (out of memory?), or the "
                f"environment crashes its process. {error}"
            ) from error
        self._restart(slot, slot.losses + 1)

    def _restart(self, slot: _Slot, losses: int) -> None:
        slot.worker.kill()
        new = self._new_slot(losses)
        slot.worker, slot.future, slot.chunk, slot.generation, slot.losses = new.worker, new.future, None, -1, losses


def make_worker_evaluator(
    policy: EvolutionPolicy,
    env: str | EnvSpec | MakeEnv | gym.Env | VecEnv,
    embedding: BehaviorEmbedding | None = None,
    embedding_horizon: int | None = None,
    *,
    n_jobs: int = -1,
    backend: str = "loky",
    ray_address: str | None = None,
    episode_timeout: float | None = None,
) -> WorkerEvaluator:
    """An evaluator whose episodes run in worker processes.

    :param policy: as the workers shall make it again; its parameters come with each generation
    :param env: what workers make their environment from, see
        :func:`~sb3_wng.algorithms.worker_environments.environment_maker`
    :param embedding: see :func:`~sb3_wng.algorithms.episodes.run_episode`
    :param embedding_horizon: see there
    :param n_jobs: number of processes; -1: one per core of this machine or of the Ray cluster
    :param backend: ``"loky"``: processes on this machine. ``"ray"``: actors of a Ray cluster
    :param ray_address: address of the cluster; ``"auto"``: the one this machine belongs to; ``None``: start one here
    :param episode_timeout: seconds that an episode may take, at least several times what one usually takes; ``None``: any
    :raises ValueError: for bad arguments, and environments, policies or embeddings that cannot be sent to a process
    :raises ImportError: for ``backend="ray"`` without Ray
    """
    if not (isinstance(n_jobs, int) and (n_jobs == -1 or n_jobs >= 1)):
        raise ValueError(f"n_jobs must be an integer >= 1, or -1 for one process per core, got {n_jobs!r}")
    if backend not in ("loky", "ray"):
        raise ValueError(f'backend must be "loky" or "ray", got {backend!r}')
    if ray_address is not None and backend != "ray":
        raise ValueError(f'ray_address={ray_address!r} needs backend="ray"')
    if episode_timeout is not None and not (0 < episode_timeout < math.inf):
        raise ValueError(f"episode_timeout must be a positive number of seconds or None, got {episode_timeout!r}")
    package = pack(policy, environment_maker(env), embedding, embedding_horizon)
    source: Backend
    if backend == "ray":
        source = RayBackend(n_jobs, ray_address)
    else:
        source = LocalBackend(n_jobs)
    return WorkerEvaluator(source, package, episode_timeout)


def _close(slots: list[_Slot], backend: Backend) -> None:
    """Not a method: the finalizer must not keep the evaluator alive."""
    for slot in slots:
        slot.worker.kill()
    slots.clear()
    backend.close()
