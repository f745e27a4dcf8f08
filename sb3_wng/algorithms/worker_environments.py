"""How a worker process comes by its own copy of an environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import cloudpickle
import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, WrapperSpec, load_env_creator
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper

MakeEnv = Callable[[], gym.Env]

# They change nothing that an episode or its return depends on; transposed images are the policy's business
HARMLESS_WRAPPERS = (VecMonitor, VecCheckNan, VecVideoRecorder, VecTransposeImage)
INSTEAD = {
    VecNormalize: "give the algorithm normalize_observations=True in its place",
    VecFrameStack: "wrap each environment in gymnasium.wrappers.FrameStackObservation in its place",
}
# Without a file, which several processes would write at once
MONITOR = WrapperSpec("Monitor", "stable_baselines3.common.monitor:Monitor", {})
WHAT_TO_PASS = "pass a registered environment's id"


def environment_maker(env: str | EnvSpec | MakeEnv | gym.Env | VecEnv) -> MakeEnv:
    """A function, for cloudpickle, that makes the environment again in another process.

    From a specification (``env.spec``, which knows the constructor's arguments and all wrappers that record theirs) where
    there is one, else from a copy. SB3's ``Monitor`` writes no file there, and as the outermost wrapper is left out.

    :param env: an id, a specification, a function that makes an environment, an environment, or a VecEnv, of which the
        first environment counts
    :raises ValueError: for a VecEnv wrapper that would be missing in the workers, and for an environment that has neither a
        specification nor a copy
    """
    if isinstance(env, VecEnv):
        return _from_vec_env(env)
    if isinstance(env, str):
        try:
            return _from_spec(gym.spec(env))
        except gym.error.Error as error:
            raise ValueError(f"unknown environment {env!r} ({error}): {WHAT_TO_PASS}") from error
    if isinstance(env, EnvSpec):
        return _from_spec(env)
    if isinstance(env, gym.Env):
        spec = env.spec
        return _from_spec(spec) if spec is not None and _is_complete(spec) else _from_copy(env)
    if callable(env):
        _dump(env)
        return env
    raise ValueError(f"workers cannot make an environment from {env!r}: {WHAT_TO_PASS}")


def foreign_specs() -> bytes:
    """The registered specifications that a bare ``import gymnasium`` does not bring, for :func:`register_specs`.

    Environments register when their module is imported. Specifications import it by themselves, but a function that calls
    ``gym.make`` counts on an import that only this process has made.
    """
    specs = {}
    for name, spec in gym.registry.items():
        if not str(spec.entry_point).startswith("gymnasium."):
            try:
                specs[name] = cloudpickle.dumps(_portable(spec))
            except Exception:  # whatever a pickled object raises; a worker that needs this one will say so
                continue
    return cloudpickle.dumps(specs)


def register_specs(specs: bytes) -> None:
    """Register what :func:`foreign_specs` found, where it is missing."""
    for name, spec in cloudpickle.loads(specs).items():
        if name not in gym.registry:
            gym.registry[name] = cloudpickle.loads(spec)


def _from_vec_env(env: VecEnv) -> MakeEnv:
    while isinstance(env, VecEnvWrapper):
        if not isinstance(env, HARMLESS_WRAPPERS):
            instead = next((text for cls, text in INSTEAD.items() if isinstance(env, cls)), "wrap each environment instead")
            raise ValueError(f"worker processes do not see {type(env).__name__}, a wrapper of the VecEnv: {instead}")
        env = env.venv
    if isinstance(env, DummyVecEnv):
        return environment_maker(env.envs[0])
    try:
        spec = env.get_attr("spec", 0)[0]
    except Exception as error:  # a process of the VecEnv died of sending it, or the VecEnv has none
        raise ValueError(f"the environments of {type(env).__name__} have no specification: {WHAT_TO_PASS}") from error
    if spec is None or not _is_complete(spec):
        raise ValueError(
            f"the environments of {type(env).__name__} are in other processes and cannot be made again from their "
            f"specification ({spec}): {WHAT_TO_PASS}, or use DummyVecEnv, whose first environment is copied"
        )
    return _from_spec(spec)


def _from_spec(spec: EnvSpec) -> MakeEnv:
    spec = _portable(spec)
    _dump(spec)
    # what the environment checker has to say, it said when this process made the environment
    return partial(gym.make, spec, disable_env_checker=True)


def _from_copy(env: gym.Env) -> MakeEnv:
    while isinstance(env, Monitor):
        env = env.env
    with _without_files(env):
        return partial(cloudpickle.loads, _dump(env))


@contextmanager
def _without_files(env: gym.Env) -> Iterator[None]:
    """An environment whose Monitors have no file, which could not be copied."""
    layer, writers = env, []
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, Monitor):
            writers.append((layer, layer.results_writer))
            layer.results_writer = None
        layer = layer.env
    try:
        yield
    finally:
        for monitor, writer in writers:
            monitor.results_writer = writer


def _dump(thing: Any) -> bytes:
    try:
        return cloudpickle.dumps(thing)
    except Exception as error:  # whatever a pickled object raises
        raise ValueError(f"workers cannot get a copy of {thing} ({error}): {WHAT_TO_PASS}") from error


def _wrappers(spec: EnvSpec) -> tuple[WrapperSpec, ...]:
    """From the inside out. An outermost Monitor would add nothing; one further inside knows what rewards were."""
    wrappers = list(spec.additional_wrappers)
    while wrappers and wrappers[-1].name == "Monitor":
        wrappers.pop()
    return tuple(MONITOR if wrapper.name == "Monitor" else wrapper for wrapper in wrappers)


def _is_complete(spec: EnvSpec) -> bool:
    """Whether the specification can make the environment again: every wrapper recorded its arguments."""
    return all(w.kwargs is not None and not w.entry_point.startswith("__main__:") for w in _wrappers(spec))


def _portable(spec: EnvSpec) -> EnvSpec:
    """A specification for another process: no window, no file, and what a script defines goes along."""
    creator: Any = spec.entry_point
    if isinstance(creator, str) and creator.startswith("__main__:"):
        creator = load_env_creator(creator)
    kwargs = {key: value for key, value in spec.kwargs.items() if (key, value) != ("render_mode", "human")}
    return EnvSpec(
        spec.id,
        creator,
        reward_threshold=spec.reward_threshold,
        nondeterministic=spec.nondeterministic,
        max_episode_steps=spec.max_episode_steps,
        order_enforce=spec.order_enforce,
        disable_env_checker=spec.disable_env_checker,
        kwargs=kwargs,
        additional_wrappers=_wrappers(spec),
    )
