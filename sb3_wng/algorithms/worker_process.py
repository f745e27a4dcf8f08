"""What runs in a worker process: the policy and the environment are made once, then candidates come in chunks."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cloudpickle
import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecTransposeImage

from sb3_wng.algorithms.episodes import run_candidate
from sb3_wng.algorithms.evaluation import Candidate, Generation, Outcome
from sb3_wng.algorithms.evolution_policies import EvolutionPolicy
from sb3_wng.algorithms.worker_environments import MakeEnv, foreign_specs, register_specs
from sb3_wng.behavior import BehaviorEmbedding

PARENT_POLL_SECONDS = 1.0


class Job(NamedTuple):
    """Everything that a worker keeps for its life; one pickle, so that what they share is shared again there."""

    policy_class: type[EvolutionPolicy]
    policy_arguments: dict[str, Any]
    policy_state: dict[str, torch.Tensor]
    make_env: MakeEnv
    embedding: BehaviorEmbedding | None
    embedding_horizon: int | None


class Package(NamedTuple):
    """A job on its way: plain types only, so that what a worker lacks fails where it can be reported."""

    job: bytes
    import_path: list[str]
    specs: bytes
    parent: int | None  # process id of the parent, if it starts the worker


@dataclass
class WorkerState:
    """What a worker process remembers between chunks."""

    job: Job
    policy: EvolutionPolicy
    env: gym.Env | None
    generation: Generation
    generation_number: int = -1


_state: WorkerState | None = None


def pack(policy: EvolutionPolicy, make_env: MakeEnv, embedding: BehaviorEmbedding | None, horizon: int | None) -> Package:
    """The policy on the CPU and everything else that a worker keeps.

    :raises ValueError: for what cannot be sent to another process
    """
    state = {key: value.detach().cpu() for key, value in policy.state_dict().items()}
    job = Job(type(policy), policy._get_constructor_parameters(), state, make_env, embedding, horizon)
    try:
        return Package(cloudpickle.dumps(job), sys.path, foreign_specs(), os.getpid())
    except Exception as error:  # whatever a pickled object raises
        raise ValueError(f"policy or embedding cannot be sent to worker processes: {error}") from error


def set_up(package: Package) -> str | None:
    """Make policy and environment; a traceback if that fails (an exception might not survive the way back)."""
    global _state
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
        if package.parent == os.getppid():
            threading.Thread(target=_end_with, args=(package.parent,), daemon=True).start()
        torch.set_num_threads(1)
        sys.path.extend(path for path in package.import_path if path not in sys.path)
        register_specs(package.specs)
        job: Job = cloudpickle.loads(package.job)
        policy = job.policy_class(**job.policy_arguments)
        policy.load_state_dict(job.policy_state)
        policy.set_training_mode(False)
        env = _make_env(job)
        check_spaces(env, policy)
    except BaseException:
        return traceback.format_exc()
    gc.freeze()  # loky collects garbage every second; among all that was imported that takes 0.1 s
    _state = WorkerState(job, policy, env, Generation(np.empty(0, np.float32), {}, 0.0, (), {}, ()))
    return None


def run_chunk(number: int, generation: Generation | None, candidates: Sequence[Candidate]) -> list[Outcome] | None:
    """One outcome per candidate. ``None`` from a process that replaced the one which was set up.

    :param number: of the generation
    :param generation: ``None`` where this worker has got it with an earlier chunk
    """
    state = _state
    if state is None or (generation is None and state.generation_number != number):
        return None
    if generation is not None:
        statistics = {key: np.array(value) for key, value in generation.observation_statistics.items()}
        # copies: Ray's shared memory is read-only, of which torch would warn
        frozen = {key: np.array(value) for key, value in generation.frozen.items()}
        parameters = np.array(generation.parameters)
        state.generation = generation._replace(parameters=parameters, frozen=frozen, observation_statistics=statistics)
        state.generation_number = number
        state.policy.load_frozen(state.generation.frozen)
    return [_run(state, candidate) for candidate in candidates]


def _run(state: WorkerState, candidate: Candidate) -> Outcome:
    job = state.job
    try:
        if state.env is None:
            state.env = _make_env(job)
        outcome = run_candidate(state.policy, state.env, state.generation, candidate, job.embedding, job.embedding_horizon)
    except Exception:
        outcome = Outcome(float("nan"), 0, None, {}, traceback.format_exc())
    if outcome.error is not None and state.env is not None:
        env, state.env = state.env, None  # who knows what it is like now
        try:
            env.close()
        except Exception as error:
            print(f"sb3_wng: a failed environment could not be closed: {error!r}", file=sys.stderr)
    return outcome


def _make_env(job: Job) -> gym.Env:
    env = job.make_env()
    # The first reset of some simulators (Bullet) is not quite like all later ones, which would make an episode depend on
    # which worker gets it
    env.reset(seed=0)
    return env


def check_spaces(env: gym.Env, policy: EvolutionPolicy) -> None:
    """:raises ValueError: where the environment is not the one that the policy was made for"""
    for name, own, theirs in (
        ("observation_space", _channels_first(env.observation_space), policy.observation_space),
        ("action_space", env.action_space, policy.action_space),
    ):
        if own != theirs:
            raise ValueError(f"{name} of the workers' environment is {own}, the policy's is {theirs}")


def _channels_first(space: spaces.Space) -> spaces.Space:
    """The space as SB3 wraps it: images with their channels first."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _channels_first(subspace) for key, subspace in space.spaces.items()})
    if is_image_space(space) and not is_image_space_channels_first(space):  # type: ignore[arg-type]
        return VecTransposeImage.transpose_space(space)  # type: ignore[arg-type]
    return space


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, even if it was killed."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_SECONDS)
    os._exit(1)
