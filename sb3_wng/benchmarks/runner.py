"""Train the runs of an experiment: resumable, safe side by side, with progress.

A run that is in the experiment's CSV file is finished and never repeated. A run in progress holds a lock, which the operating
system frees however its process ends, and leaves a checkpoint every few rollouts: model, observation statistics, random
generators and the episodes so far. A run that was interrupted continues from there with episodes of its own: where the
environments stood inside theirs is not saved, so its returns differ from those of an undisturbed run, as another seed's would.
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_wng.benchmarks.checkpoints import (
    file_name,
    generator_states,
    read_checkpoint,
    replace_file,
    saved,
    set_generator_states,
    write_checkpoint,
)
from sb3_wng.benchmarks.models import Experiment, algorithm_class, make_env, make_model, settings
from sb3_wng.benchmarks.pool import ProcessPool
from sb3_wng.benchmarks.records import append_records, read_records

FINISHED, ALREADY_FINISHED, PAUSED, TAKEN = "finished", "already finished", "paused", "running elsewhere"
RUN = ("algorithm", "environment", "seed")  # columns that name a run
Seconds = tuple[float, float]  # of the clock, and of the processor: what a run takes where it has one for itself
Episode = tuple[int, float, float, float]  # steps of the run, return, seconds of the run at its end


@dataclass(frozen=True)
class Run:
    """One training run, and where its results and its checkpoints go.

    :param results: folder of the CSV files
    :param work: folder of the checkpoints
    """

    experiment: Experiment
    algorithm: str
    environment: str
    seed: int
    results: Path
    work: Path

    @property
    def key(self) -> tuple[str, str, str]:
        return self.algorithm, self.environment, str(self.seed)

    @property
    def csv(self) -> Path:
        return self.results / f"{self.experiment.name}.csv"

    @property
    def folder(self) -> Path:
        """Name that any file system takes."""
        return self.work / self.experiment.name / file_name(*self.key)

    @property
    def timesteps(self) -> int:
        return self.experiment.environments[self.environment]

    @property
    def description(self) -> str:
        """Who runs, and with which settings: what a checkpoint belongs to."""
        return repr((self.key, settings(self.experiment, self.algorithm, self.environment)))

    def is_finished(self) -> bool:
        return self.key in finished(self.csv)

    def steps_done(self) -> int:
        """Steps up to the last rollout, of a run in progress."""
        try:
            return min(int((self.folder / "steps").read_text()), self.timesteps)
        except (FileNotFoundError, ValueError):
            return 0


def finished(csv: Path) -> set[tuple[str, str, str]]:
    """Algorithm, environment and seed of every run in a CSV file."""
    return {(row["algorithm"], row["environment"], row["seed"]) for row in read_records(csv)}


def clock() -> Seconds:
    return time.perf_counter(), time.process_time()


# --- Checkpoints ---


def save_checkpoint(run: Run, model: BaseAlgorithm, episodes: list[Episode], seconds: Seconds) -> None:
    state = {
        "model": saved(model),
        "normalization": pickle.dumps(model.get_vec_normalize_env()),
        "episodes": episodes,
        "seconds": seconds,
        "generators": generator_states(),
    }
    write_checkpoint(run.folder / "checkpoint", run.description, state)


def load_checkpoint(run: Run) -> tuple[BaseAlgorithm, list[Episode], Seconds]:
    """The model of a checkpoint with new environments, the episodes so far, and the seconds they took.

    :raises ValueError: for a checkpoint of another run, or of other settings
    """
    state = read_checkpoint(run.folder / "checkpoint", run.description)
    arguments = settings(run.experiment, run.algorithm, run.environment)
    env = make_env(run.environment, arguments, seed=run.seed)
    statistics: VecNormalize | None = pickle.loads(state["normalization"])
    if statistics is not None:
        assert isinstance(env, VecNormalize)
        statistics.set_venv(env.venv)
        env = statistics
    algorithm = algorithm_class(run.experiment.methods[run.algorithm].algorithm)
    model = algorithm.load(io.BytesIO(state["model"]), env=env, device="cpu")
    # Another seed than the run's, which load() has given it, lest its first episodes be played again
    env.seed(run.seed + 1_000_003 * (1 + len(state["episodes"])))
    set_generator_states(state["generators"])
    return model, state["episodes"], state["seconds"]


# --- One run ---


class RunCallback(BaseCallback):
    """Records training episodes, leaves checkpoints between rollouts, and stops between them at the deadline."""

    def __init__(self, run: Run, episodes: list[Episode], seconds: Seconds, deadline: float, checkpoint_every: int) -> None:
        super().__init__()
        self.run, self.episodes, self.is_paused = run, episodes, False
        self._deadline, self._checkpoint_every = deadline, checkpoint_every
        self._start = [now - before for now, before in zip(clock(), seconds, strict=True)]
        self._n_rollouts = 0

    @property
    def seconds(self) -> Seconds:
        wall, cpu = (now - start for now, start in zip(clock(), self._start, strict=True))
        return wall, cpu

    def _on_training_start(self) -> None:
        self._returns = np.zeros(self.training_env.num_envs)

    def _on_rollout_start(self) -> None:
        replace_file(self.run.folder / "steps", str(self.num_timesteps).encode())
        self.is_paused = time.time() > self._deadline
        if self.is_paused or (self._n_rollouts > 0 and self._n_rollouts % self._checkpoint_every == 0):
            save_checkpoint(self.run, self.model, self.episodes, self.seconds)
        self._n_rollouts += 1

    def _on_step(self) -> bool:
        if self.is_paused:  # SB3 only asks here; this step is not in the checkpoint
            return False
        # Monitor rounds returns to six decimals, and some tasks are about smaller ones
        statistics = self.model.get_vec_normalize_env()
        self._returns += self.locals["rewards"] if statistics is None else statistics.get_original_reward()
        for index in np.flatnonzero(self.locals["dones"]):
            self.episodes.append((self.num_timesteps, float(self._returns[index]), *self.seconds))
            self._returns[index] = 0.0
        return True


def train(run: Run, deadline: float = float("inf"), checkpoint_every: int = 10) -> str:
    """Start or continue a run, unless it is finished or another process has it; say which.

    :param deadline: time (seconds since the epoch) at which to pause
    :param checkpoint_every: rollouts between checkpoints
    """
    torch.set_num_threads(1)
    if time.time() > deadline:
        return PAUSED
    run.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run.folder / "lock", timeout=0):
            if run.is_finished():
                return ALREADY_FINISHED
            return _train(run, deadline, checkpoint_every)
    except Timeout:
        return TAKEN


def _train(run: Run, deadline: float, checkpoint_every: int) -> str:
    checkpoint = run.folder / "checkpoint"
    if checkpoint.exists():
        model, episodes, seconds = load_checkpoint(run)
    else:
        model = make_model(run.experiment, run.algorithm, run.environment, run.seed)
        episodes, seconds = [], (0.0, 0.0)
    callback = RunCallback(run, episodes, seconds, deadline, checkpoint_every)
    if model.num_timesteps < run.timesteps:
        model.learn(run.timesteps - model.num_timesteps, callback=callback, reset_num_timesteps=False)
    model.get_env().close()  # type: ignore[union-attr]
    if callback.is_paused:
        return PAUSED
    is_first = append_records(run.csv, records(run, callback.episodes), once=RUN)
    for name in ("checkpoint", "steps"):
        (run.folder / name).unlink(missing_ok=True)
    return FINISHED if is_first else ALREADY_FINISHED  # by a process with a work folder of its own


def records(run: Run, episodes: Iterable[Episode]) -> list[dict[str, object]]:
    """One record per bin of steps in which an episode ended: their mean return, and the seconds at the last one's end."""
    steps, returns, wall, cpu = np.array(list(episodes), dtype=np.float64).reshape(-1, 4).T
    width = run.timesteps // run.experiment.n_bins
    key = {"algorithm": run.algorithm, "environment": run.environment, "seed": run.seed}
    rows: list[dict[str, object]] = []
    for end in range(width, run.timesteps + 1, width):
        inside = (steps > end - width) & (steps <= end)
        if inside.any():
            measured = {
                "timesteps": end,
                "return": f"{returns[inside].mean():.6g}",
                "wall_seconds": f"{wall[inside][-1]:.1f}",
                "cpu_seconds": f"{cpu[inside][-1]:.1f}",
            }
            rows.append({"experiment": run.experiment.name, **key, **measured})
    return rows


# --- Many runs ---


def run_all(runs: list[Run], jobs: int, budget: float = float("inf"), checkpoint_every: int = 10) -> bool:
    """Train in parallel processes and print progress; whether all are finished.

    :param jobs: number of processes, each with one thread
    :param budget: seconds after which runs pause
    :raises ValueError: before any training, if a method's settings are missing
    """
    done = set().union(*(finished(csv) for csv in {run.csv for run in runs}))
    pending = [run for run in runs if run.key not in done]
    for run in pending:
        settings(run.experiment, run.algorithm, run.environment)
    print(f"{len(runs) - len(pending)} of {len(runs)} runs are finished, {len(pending)} to do", flush=True)
    deadline = time.time() + budget
    progress = Progress(pending)
    outcomes: list[str] = []
    with ProcessPool(jobs) as pool:
        futures = {pool.submit(train, run, deadline, checkpoint_every): run for run in pending}
        waiting: set[Future[str]] = set(futures)
        while waiting:
            ended, waiting = wait(waiting, timeout=30, return_when=FIRST_COMPLETED)
            for future in ended:
                outcomes.append(_outcome(future))
                progress.ended(futures[future], outcomes[-1])
            print(progress.line(len(outcomes)), flush=True)
    return all(outcome in (FINISHED, ALREADY_FINISHED) for outcome in outcomes)


def _outcome(future: Future[str]) -> str:
    """What became of a run; one that failed does not end the others."""
    error = future.exception()
    return future.result() if error is None else f"failed: {type(error).__name__}: {error}"


class Progress:
    """Counts steps since the start and predicts when the rest will be done."""

    def __init__(self, runs: list[Run]) -> None:
        self._start = time.time()
        self._steps: dict[tuple[str, ...], int] = {run.key: run.steps_done() for run in runs}
        self._runs: dict[tuple[str, ...], Run] = {run.key: run for run in runs}
        self._at_start = sum(self._steps.values())
        self._total = sum(run.timesteps for run in runs)
        self._n_runs = len(runs)

    def ended(self, run: Run, outcome: str) -> None:
        print(f"{outcome}: {', '.join(run.key)}", flush=True)
        self._runs.pop(run.key)
        if outcome == FINISHED:
            self._steps[run.key] = run.timesteps
        elif outcome == PAUSED:
            self._steps[run.key] = run.steps_done()
        else:  # nothing left to do here, and nothing done
            self._total -= run.timesteps
            self._at_start -= self._steps.pop(run.key)

    def line(self, n_ended: int) -> str:
        self._steps.update({key: max(self._steps[key], run.steps_done()) for key, run in self._runs.items()})
        done, elapsed = sum(self._steps.values()), time.time() - self._start
        rate = (done - self._at_start) / elapsed if elapsed > 0 else 0.0
        left = _duration((self._total - done) / rate) if rate > 0 else "unknown"
        return f"{n_ended}/{self._n_runs} runs, {done:,}/{self._total:,} steps, {rate:.0f} steps/s, to finish: {left}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def make_runs(
    experiment: Experiment,
    results: Path,
    work: Path,
    algorithms: Iterable[str] | None = None,
    environments: Iterable[str] | None = None,
    seeds: Iterable[int] | None = None,
) -> list[Run]:
    """The chosen runs of an experiment, a seed at a time so that an early end leaves whole comparisons.

    :raises ValueError: for algorithms or environments that the experiment does not have
    """
    chosen: dict[str, list[Any]] = {
        "algorithms": list(experiment.methods if algorithms is None else algorithms),
        "environments": list(experiment.environments if environments is None else environments),
    }
    for name, known in (("algorithms", experiment.methods), ("environments", experiment.environments)):
        if unknown := [value for value in chosen[name] if value not in known]:
            raise ValueError(f"--{name}: {experiment.name} has no {unknown}; it has {list(known)}")
    return [
        Run(experiment, algorithm, environment, seed, results, work)
        for seed in dict.fromkeys(experiment.seeds if seeds is None else seeds)
        for environment in dict.fromkeys(chosen["environments"])
        for algorithm in dict.fromkeys(chosen["algorithms"])
    ]
