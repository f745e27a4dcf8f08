"""Evolution strategies before a wall: ``python -m sb3_wng.benchmarks.evolution_study [STUDY] [--seeds 0 1 ...] [--jobs 1]``.

``point_wall`` is the Point task of Fig. 4 of Moskovitz et al. (2021, arXiv 2010.05380), ``ant_wall`` its Quadruped on a
seventh of the budget. The straight way to the goal ends in a pocket; a run has *escaped* if its last ten policies return
more than a policy in the pocket can (:attr:`Study.escape_return`). A run that is already in the CSV file is not repeated,
and one that was interrupted goes on from its last checkpoint with the episodes that it would have had.

Files: ``STUDY.csv`` has the mean return of the unperturbed policy over every five iterations, ``STUDY_paths.csv`` one path
of every run's last policy.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from sb3_wng import BGES, BGWNES, ES, NSRES, WNES
from sb3_wng.algorithms import EvolutionStrategy
from sb3_wng.benchmarks.checkpoints import file_name, read_checkpoint, saved, write_checkpoint
from sb3_wng.benchmarks.pool import run_pending
from sb3_wng.benchmarks.records import RESULTS, WORK, append_records, read_records

N_COLUMNS = 8  # environments that are stepped together; results do not depend on it
ITERATIONS_PER_RECORD = 5
ITERATIONS_PER_CHECKPOINT = 10  # about two minutes on AntWall
CLIP = 0.05  # of directions whose norm is .07 to .1 in these units
PUBLISHED_NOISE = 0.01  # per parameter: the released code's perturbations are vectors of length .1 with 101 numbers


class ReleasedNovelty(nn.Module):
    r"""The behaviour score of the released code, which is none of the papers': minus a density of visited behaviour.

    Its dual variables b_1, b_2 of random features :math:`z(x) = \sqrt{2 / D} \cos(\omega x + b)` ascend

    .. math:: b_1 \mathrel{+}= \alpha (1 - e) z(x), \quad b_2 \mathrel{+}= \alpha (1 - e) z(y), \quad
        e = \exp((b_1 \cdot z(x) - b_2 \cdot z(y) - |x - y|^2) / \gamma),

    for 100 pairs of an earlier policy's x and a candidate's y per iteration, from iteration to iteration. With the sign of
    b_2 z(y) turned, :math:`|x - y|^2 \gg 1` leaves e near 0, so that b_2 sums z over all candidates so far: a candidate's
    score :math:`b_1 z(x) - b_2 z(y) + e \gamma` falls with how often behaviour like its own has been seen. It fills the slot
    of :class:`sb3_wng.behavior.WassersteinBonus`. The code's width and gamma are not known here; both are 1.

    :param dim: of the embedding
    :param n_previous: policies remembered
    :param n_features: D
    :param seed: of the features and the pairs
    """

    n_pairs, rate, gamma, width = 100, 0.05, 1.0, 1.0

    def __init__(self, dim: int, n_previous: int = 2, n_features: int = 1000, seed: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.frequencies = torch.randn(n_features, dim, generator=self.generator) / self.width
        self.phases = 2 * math.pi * torch.rand(n_features, generator=self.generator)
        self.coefficients = torch.zeros(2, n_features)
        self.n_previous = n_previous
        self.previous = torch.zeros(0, dim)

    def update(self, current: Tensor, candidates: Tensor | None = None) -> None:
        """The policy's embeddings (1, d) join the memory."""
        self.previous = torch.cat([self.previous, current])[-self.n_previous :]

    def forward(self, embeddings: Tensor) -> Tensor:
        """Scores (n,) of the candidates, after the iteration's steps on them."""
        for _ in range(self.n_pairs):
            i, j = (int(torch.randint(n, (), generator=self.generator)) for n in (len(self.previous), len(embeddings)))
            x, y = self.previous[i : i + 1], embeddings[j : j + 1]
            step = self.rate * (1 - self._violation(x, y)[0, 0])
            self.coefficients += step * torch.cat([self._features(x), self._features(y)])
        return self._scores(embeddings)

    def value(self, embeddings: Tensor) -> float:
        """Mean score of embeddings (n, d); for logs."""
        return self._scores(embeddings).mean().item()

    def _scores(self, embeddings: Tensor) -> Tensor:
        gap = self._gap(self.previous, embeddings)
        return (gap + self.gamma * self._violation(self.previous, embeddings)).mean(dim=0)

    def _features(self, points: Tensor) -> Tensor:
        return math.sqrt(2 / len(self.phases)) * torch.cos(points @ self.frequencies.T + self.phases)

    def _gap(self, x: Tensor, y: Tensor) -> Tensor:
        """b_1 z(x) - b_2 z(y) for all pairs, shape (n, m)."""
        return (self._features(x) @ self.coefficients[0])[:, None] - self._features(y) @ self.coefficients[1]

    def _violation(self, x: Tensor, y: Tensor) -> Tensor:
        """e for all pairs, shape (n, m)."""
        return torch.exp((self._gap(x, y) - torch.cdist(x, y).square()) / self.gamma)


@dataclass(frozen=True)
class Method:
    """A line of the table.

    :param is_released: whether the released code's score takes the place of the Wasserstein bonus
    """

    algorithm: type[EvolutionStrategy]
    arguments: dict[str, Any] = field(default_factory=dict)
    is_released: bool = False


@dataclass(frozen=True)
class Study:
    """A task and the methods that are compared on it.

    :param common: arguments of all methods
    :param behavior: arguments of those with an embedding
    :param escape_return: what the last policies of a run that has left the pocket return on average, at least
    :param notes: sentences for the page of results
    """

    environment: str
    methods: dict[str, Method]
    n_iterations: int
    escape_return: float
    common: dict[str, Any]
    behavior: dict[str, Any]
    notes: str = ""


FADING = {"wasserstein_coef": LinearSchedule(-0.3, 0.0, 0.3)}
# What every method of "ours" has: the best few candidates decide, observations have unit variance, steps become small
OURS = {
    "fitness_shaping": "utility",
    "normalize_observations": True,
    "learning_rate": LinearSchedule(0.1, 0.02, 1.0),
}
RELEASED = {"wasserstein_coef": -1.0, "n_previous": 2}  # beta = 0.5
OF_NOISE = (
    "In these runs the noise of actions came from the stream that had drawn the episode's start, and not, as now, from one of "
    "its own; nothing else is random in an episode."
)
POINT_WALL = Study(
    "PointWall-v0",
    {
        "ES": Method(ES),
        "ES, clipped": Method(ES, {"max_grad_norm": CLIP}),
        "WNES": Method(WNES, {"natural_coef": 1.0}),
        "WNES, -1.3": Method(WNES, {"natural_coef": -1.3}),
        "BGES, 0.5": Method(BGES, {"wasserstein_coef": -1.0}),
        "BGES, 0.75": Method(BGES, {"wasserstein_coef": -3.0}),
        "BGWNES": Method(BGWNES, {"wasserstein_coef": -1.0}),
        "NSRES": Method(NSRES),
        "ES, published noise": Method(ES, {"delta_std": PUBLISHED_NOISE}),
        "released score, published noise": Method(BGES, {**RELEASED, "delta_std": PUBLISHED_NOISE}, is_released=True),
        "ES, ours": Method(ES, OURS),
        "WNES, ours": Method(WNES, OURS),
        "BGES, ours": Method(BGES, {**OURS, **FADING}),
        "BGWNES, ours": Method(BGWNES, {**OURS, **FADING}),
        "NSRES, ours": Method(NSRES, OURS),
        "ES, utilities alone": Method(ES, {"fitness_shaping": "utility"}),
        "ES, normalised alone": Method(ES, {"normalize_observations": True}),
    },
    n_iterations=100,
    escape_return=-650.0,
    common={"learning_rate": 0.1, "n_delta": 50, "delta_std": 0.1, "policy_kwargs": {"action_noise_std": 0.1}},
    behavior={"embedding": "final_state"},
    notes="*Ours*: utilities instead of standardised returns, observations of unit variance, a learning rate that falls from "
    "0.1 to 0.02, and a repulsion that is gone after 30 % of the steps, chosen on other seeds; the last two rows have one of "
    "the first two alone. *Published noise*: a standard deviation of 0.01 per parameter, a tenth of the others'; *released "
    f"score*: the released code's bonus, minus a density of visited behaviour. {OF_NOISE}",
)
ANT_WALL = Study(
    "AntWall-v0",
    {"ES": Method(ES), "WNES": Method(WNES), "BGES": Method(BGES, FADING), "BGWNES": Method(BGWNES, FADING)},
    n_iterations=124,  # 5 million steps
    escape_return=-4400.0,
    common={
        "learning_rate": 0.02,
        "n_delta": 50,
        "delta_std": 0.1,
        "policy_kwargs": {"net_arch": [64, 64], "action_noise_std": 0.1},
    },
    behavior={"embedding": "reward_to_go"},
    notes="A seventh of the paper's steps. Standing still returns -6000, walking into the pocket and staying there -4400 to "
    f"-4600: these ants still walk slowly, some as far as the pocket. {OF_NOISE}",
)
STUDIES = {"point_wall": POINT_WALL, "ant_wall": ANT_WALL}


class ParentReturns(KVWriter):
    """Keeps the return of the unperturbed policy of every iteration, with the steps and the seconds so far."""

    def __init__(self, rows: Iterable[tuple[int, float, float]] = ()) -> None:
        self.rows = list(rows)
        self._start = time.process_time() - (self.rows[-1][2] if self.rows else 0.0)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.rows.append((step, key_values["rollout/parent_return"], time.process_time() - self._start))

    def close(self) -> None:
        """Nothing is open."""

    def records(self) -> Iterator[dict[str, object]]:
        """One per :data:`ITERATIONS_PER_RECORD` iterations."""
        for end in range(ITERATIONS_PER_RECORD, len(self.rows) + 1, ITERATIONS_PER_RECORD):
            steps, returns, seconds = zip(*self.rows[end - ITERATIONS_PER_RECORD : end], strict=True)
            yield {"timesteps": steps[-1], "return": f"{np.mean(returns):.2f}", "cpu_seconds": f"{seconds[-1]:.1f}"}


class Checkpoints(BaseCallback):
    """Leaves the model and the returns so far between iterations."""

    def __init__(self, path: Path, made_by: str, returns: ParentReturns) -> None:
        super().__init__()
        self.path, self.made_by, self.returns = path, made_by, returns

    def _on_rollout_start(self) -> None:
        n_iterations = len(self.returns.rows)
        if n_iterations > 0 and n_iterations % ITERATIONS_PER_CHECKPOINT == 0:
            write_checkpoint(self.path, self.made_by, (saved(self.model), self.returns.rows))

    def _on_step(self) -> bool:
        return True


def make_environments(study: Study) -> VecEnv:
    return make_vec_env(study.environment, N_COLUMNS)


def settings(study: Study, name: str) -> dict[str, Any]:
    """Arguments of a method's algorithm."""
    method = study.methods[name]
    return {**study.common, **({} if method.algorithm is ES else study.behavior), **method.arguments}


def make_model(study: Study, name: str, seed: int) -> EvolutionStrategy:
    method, arguments = study.methods[name], settings(study, name)
    model = method.algorithm("ToeplitzPolicy", make_environments(study), seed=seed, **arguments)
    if method.is_released:
        model.wasserstein_bonus = ReleasedNovelty(model.observation_space.shape[0], model.n_previous, seed=seed)  # type: ignore[index, assignment]
    return model


def follow(model: EvolutionStrategy, environment: str, seed: int) -> dict[str, object]:
    """Where the policy goes in one episode: the robot's x and y in metres after every step, and the return."""
    env = gym.make(environment)
    observation, _ = env.reset(seed=seed)
    xs, ys, total, is_over = [], [], 0.0, False
    while not is_over:
        action, _ = model.predict(observation, deterministic=True)
        observation, reward, terminated, truncated, info = env.step(action)
        total += float(reward)
        xs.append(f"{info['x_position']:.2f}")
        ys.append(f"{info['y_position']:.2f}")
        is_over = terminated or truncated
    return {"return": f"{total:.2f}", "x": " ".join(xs), "y": " ".join(ys)}


def checkpoint_path(work: Path, key: str, name: str, seed: int) -> Path:
    return work / file_name(key, name, seed)


def run(
    key: str, name: str, seed: int, work: Path, deadline: float = math.inf
) -> tuple[list[dict[str, object]], dict[str, object]]:
    """Train once, from a checkpoint if there is one: records of the learning curve and of the path.

    :param work: folder of the checkpoints; the released score has none, since its state is not part of the model
    :param deadline: seconds since the epoch after which nothing is started, and nothing returned
    """
    if time.time() > deadline:
        return [], {}
    torch.set_num_threads(1)
    study = STUDIES[key]
    checkpoint = checkpoint_path(work, key, name, seed)
    made_by = repr((key, name, seed, study.n_iterations, settings(study, name)))
    if checkpoint.exists():
        content, rows = read_checkpoint(checkpoint, made_by)
        model = study.methods[name].algorithm.load(io.BytesIO(content), env=make_environments(study))
    else:
        model, rows = make_model(study, name, seed), []
    returns = ParentReturns(rows)
    model.set_logger(Logger(None, [returns]))
    steps = study.n_iterations * (2 * study.common["n_delta"] + 1) * gym.spec(study.environment).max_episode_steps
    callback = None if study.methods[name].is_released else Checkpoints(checkpoint, made_by, returns)
    model.learn(steps - model.num_timesteps, callback, reset_num_timesteps=False)
    origin = {"experiment": key, "algorithm": name, "environment": study.environment, "seed": seed}
    return [{**origin, **record} for record in returns.records()], {**origin, **follow(model, study.environment, seed)}


def unfinished(curves: Path, methods: Iterable[str], seeds: Iterable[int]) -> list[tuple[str, int]]:
    """The runs that a file does not have, a seed at a time so that an early end leaves whole comparisons."""
    return [(name, seed) for seed in seeds for name in methods if (name, seed) not in recorded(curves)]


def recorded(path: Path) -> set[tuple[str, int]]:
    """Methods and seeds that a file has."""
    return {(row["algorithm"], int(row["seed"])) for row in read_records(path)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("study", choices=list(STUDIES), nargs="?", default="point_wall")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--methods", nargs="+", help="names in the table (default: all)")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds after which no run is started")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the CSV files")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of checkpoints (default: %(default)s)")
    arguments = parser.parse_args()
    methods = arguments.methods or list(STUDIES[arguments.study].methods)
    if unknown := set(methods) - set(STUDIES[arguments.study].methods):
        parser.error(f"--methods: {arguments.study} has no {sorted(unknown)}; it has {list(STUDIES[arguments.study].methods)}")
    curves, paths = (arguments.output / f"{arguments.study}{suffix}.csv" for suffix in ("", "_paths"))

    def record(key: tuple[Any, ...], result: tuple[list[dict[str, object]], dict[str, object]]) -> bool:
        records, path = result
        if records:
            if key not in recorded(paths):
                append_records(paths, [path])  # first: the run is finished once its curve is there
            append_records(curves, records)
            checkpoint_path(arguments.work, arguments.study, *key).unlink(missing_ok=True)
        return bool(records)

    train = partial(run, arguments.study, work=arguments.work, deadline=time.time() + arguments.budget)
    pending = partial(unfinished, curves, methods, arguments.seeds)
    return 0 if run_pending(curves, arguments.jobs, pending, train, record) else 1


if __name__ == "__main__":
    sys.exit(main())
