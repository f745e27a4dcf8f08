"""How fast workers are against the bare environment and ARS: ``python -m sb3_wng.benchmarks.evolution_speed [--output FILE]``.

Environment steps per second with several processes, the same task, network and number of episodes for all. The bare
environment replays the very episodes of a candidate, as what a step costs depends on what the robot does. Subjects take
turns, so that a noisy machine disturbs all of them alike; ratios are taken within a repetition and their median is reported.

Steps per second need a quiet machine. Steps per CPU second, of all the processes that a subject starts, do not: they have all
that is computed and sent besides the environment, but not the time in which a core waits.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_wng import ES
from sb3_wng.algorithms.worker_backends import LocalWorker
from sb3_wng.algorithms.worker_environments import MakeEnv, environment_maker
from sb3_wng.benchmarks.records import append_records

DELTA_STD, NET_ARCH = 0.1, [64, 64]
N_TIMED = 2  # iterations, after one in which processes start
Episode = tuple[int, NDArray[Any]]  # seed and actions
RAW, ARS = "environment alone", "ARS, AsyncEval"


class Speed(NamedTuple):
    """Environment steps of all processes together."""

    per_second: float
    per_cpu_second: float


class Stopwatch(BaseCallback):
    """Speed from the end of the first rollout to the end of the last, with the updates between them."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[tuple[int, float, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.marks.append((self.num_timesteps, time.perf_counter(), cpu_seconds()))

    def speed(self) -> Speed:
        steps, seconds, cpu = (last - first for first, last in zip(self.marks[0], self.marks[-1], strict=True))
        return Speed(steps / seconds, steps / cpu)


def cpu_seconds() -> float:
    """CPU time of this process and of all that descend from it (Linux)."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        pid = int(path.parent.name)
        children.setdefault(int(fields[1]), []).append(pid)
        ticks[pid] = int(fields[11]) + int(fields[12])

    def total(pid: int) -> int:
        return ticks[pid] + sum(map(total, children.get(pid, ())))

    return total(os.getpid()) / os.sysconf("SC_CLK_TCK")


def record_episodes(env_id: str, n_episodes: int = 4) -> list[Episode]:
    """Seeds and actions of episodes of perturbed policies, as an evolution strategy runs them."""
    model = make_es(env_id, 1)
    parameters = model.policy.parameters_to_vector()
    env, episodes = gym.make(env_id), []
    for seed in range(n_episodes):
        perturbation = np.random.default_rng(seed).standard_normal(len(parameters), dtype=np.float32)
        act = model.policy.make_actor((parameters + np.float32(DELTA_STD) * perturbation)[None])
        actions, is_over = [], False
        observation, _ = env.reset(seed=seed)
        while not is_over:
            actions.append(act(observation[None], [np.random.default_rng(seed)])[0])
            observation, _, terminated, truncated, _ = env.step(actions[-1])
            is_over = terminated or truncated
        episodes.append((seed, np.array(actions)))
    return episodes


def replay(make_env: MakeEnv, episodes: list[Episode], n_steps: int) -> Speed:
    """Speed of this process, which does nothing else than stepping the environment."""
    env = make_env()
    env.reset(seed=0)
    n_done, start, cpu_start = 0, time.perf_counter(), time.process_time()
    while n_done < n_steps:
        for seed, actions in episodes:
            env.reset(seed=seed)
            for action in actions:
                env.step(action)
            n_done += len(actions)
    return Speed(n_done / (time.perf_counter() - start), n_done / (time.process_time() - cpu_start))


def raw_speed(workers: list[LocalWorker], make_env: MakeEnv, episodes: list[Episode], n_steps: int) -> Speed:
    """Speed of all the processes at once, one on each core."""
    futures = [worker.submit(replay, make_env, episodes, n_steps // len(workers)) for worker in workers]
    seconds, cpu_seconds = zip(*(future.result() for future in futures), strict=True)
    return Speed(sum(seconds), statistics.mean(cpu_seconds))


def learning_speed(
    make: Callable[[], BaseAlgorithm], steps_per_iteration: int, learn_arguments: Callable[[BaseAlgorithm], dict[str, Any]]
) -> Speed:
    """Speed of an algorithm without the start of its processes."""
    model, stopwatch = make(), Stopwatch()
    model.learn((N_TIMED + 1) * steps_per_iteration, callback=stopwatch, **learn_arguments(model))
    return stopwatch.speed()


def make_es(env_id: str, n_delta: int, **kwargs: Any) -> ES:
    settings: dict[str, Any] = {"n_delta": n_delta, "delta_std": DELTA_STD, "seed": 0, "device": "cpu"}
    return ES("MlpPolicy", make_vec_env(env_id, 1), policy_kwargs={"net_arch": NET_ARCH}, **settings, **kwargs)


def make_ars(env_id: str, n_delta: int) -> BaseAlgorithm:
    from sb3_contrib import ARS

    policy_kwargs = {"net_arch": NET_ARCH, "activation_fn": torch.nn.Tanh}
    settings: dict[str, Any] = {"n_delta": n_delta, "delta_std": DELTA_STD, "zero_policy": False, "seed": 0, "device": "cpu"}
    return ARS("MlpPolicy", make_vec_env(env_id, 1), policy_kwargs=policy_kwargs, **settings)


def ars_processes(env_id: str, n_jobs: int, model: BaseAlgorithm) -> dict[str, Any]:
    from sb3_contrib.common.vec_env import AsyncEval

    return {"async_eval": AsyncEval([partial(make_vec_env, env_id, 1) for _ in range(n_jobs)], model.policy)}


def measure(env_id: str, n_jobs: int, n_delta: int, repetitions: int, with_ray: bool) -> list[dict[str, object]]:
    """Speeds and ratios of every repetition, then the medians."""
    make_env, episodes = environment_maker(env_id), record_episodes(env_id)
    steps = 2 * n_delta * int(np.mean([len(actions) for _, actions in episodes]))
    subjects: dict[str, Callable[[], Speed]] = {
        "ES, loky": lambda: learning_speed(partial(make_es, env_id, n_delta, n_jobs=n_jobs), steps, lambda _: {}),
        ARS: lambda: learning_speed(partial(make_ars, env_id, n_delta), steps, partial(ars_processes, env_id, n_jobs)),
    }
    if with_ray:
        subjects["ES, ray"] = lambda: learning_speed(
            partial(make_es, env_id, n_delta, n_jobs=n_jobs, backend="ray"), steps, lambda _: {}
        )
    records: list[dict[str, object]] = []
    by_subject: dict[tuple[str, str], list[float]] = {}
    for repetition in range(repetitions):
        workers = [LocalWorker() for _ in range(n_jobs)]
        raw_speed(workers, make_env, episodes, 1)  # imports
        speeds = {RAW: raw_speed(workers, make_env, episodes, 2 * steps)}
        for name, run in subjects.items():
            speeds[name] = run()
        again = raw_speed(workers, make_env, episodes, 2 * steps)
        speeds[RAW] = Speed(*(statistics.mean(pair) for pair in zip(speeds[RAW], again, strict=True)))
        for worker in workers:
            worker.kill()
        for name, speed in speeds.items():
            for unit, own, raw, ars in zip(("s", "CPU s"), speed, speeds[RAW], speeds[ARS], strict=True):
                quantity = f"env steps per {unit}"
                values = {quantity: own, f"{quantity} / environment alone": own / raw, f"{quantity} / ARS": own / ars}
                for key, value in values.items():
                    by_subject.setdefault((name, key), []).append(value)
                    records.append(record(env_id, n_jobs, name, str(repetition), key, value))
    medians = [
        record(env_id, n_jobs, name, "median", quantity, statistics.median(values))
        for (name, quantity), values in by_subject.items()
    ]
    return [{**row, "n_delta": n_delta} for row in records + medians]


def record(env_id: str, n_jobs: int, subject: str, repetition: str, quantity: str, value: float) -> dict[str, object]:
    return {
        "experiment": "evolution_speed",
        "environment": env_id,
        "n_jobs": n_jobs,
        "subject": subject,
        "repetition": repetition,
        "quantity": quantity,
        "value": value,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--env", default="AntWall-v0")
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--n-delta", type=int, default=50)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path, help="CSV file to write (default: print only)")
    arguments = parser.parse_args()
    if "Bullet" in arguments.env:
        import pybullet_envs_gymnasium  # noqa: F401  # registers the robots
    os.environ["OMP_NUM_THREADS"] = "1"  # of ARS's processes; ours do it themselves
    torch.set_num_threads(1)
    with_ray = importlib.util.find_spec("ray") is not None
    records = measure(arguments.env, arguments.n_jobs, arguments.n_delta, arguments.repetitions, with_ray)
    for row in records:
        print(f"{row['subject']:18} {row['repetition']:7} {row['quantity']:40} {row['value']:12.3f}")
    if arguments.output is not None:
        arguments.output.unlink(missing_ok=True)
        append_records(arguments.output, records)


if __name__ == "__main__":
    main()
