"""Why SVPG works: ``python -m sb3_wng.benchmarks.svpg_study EXPERIMENT [--seeds 0 1 2 3 4] [--jobs 2] [--share 1.0]``.

``table`` is Table 1 of Liu et al. (2017, arXiv 1704.02399), ``temperature`` its Fig. 4, ``population_size`` the study that
the paper leaves out (equal total steps), ``ablations`` takes the method apart, ``weights`` and ``weights_double_pendulum``
ask what of that holds on CartPole and on DoublePendulum. All run on rllab's tasks, natively batched. A run that is in the
output file is not repeated. One that was interrupted continues from its checkpoint and ends as an undisturbed one;
cross-entropy methods start again. ``--share 0.1`` runs a tenth of the published iterations.
``visitation`` measures where the best four particles of each saved population go.

Columns: ``return_best`` and ``return_mean`` are over the particles, each the mean of its last 20 training episodes;
``particle_returns`` has all of them.
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from sb3_wng.benchmarks.checkpoints import (
    file_name,
    generator_states,
    read_checkpoint,
    saved,
    set_generator_states,
    write_checkpoint,
)
from sb3_wng.benchmarks.cross_entropy import CrossEntropy
from sb3_wng.benchmarks.pool import run_pending
from sb3_wng.benchmarks.records import RESULTS, WORK, append_records, read_records, write_records
from sb3_wng.envs import make_batched
from sb3_wng.population import SVPG, AnnealedTemperature, CyclicalTemperature

N_COLUMNS, N_STEPS = 320, 500  # 16 particles x 20 environments x one horizon: 10,000 steps per particle and iteration
N_PARTICLES = 16
N_RECORDS = 50  # points of a learning curve
ITERATIONS_PER_CHECKPOINT = 20
N_BINS = 30  # of each axis of the visitation
SWING_UP, DOUBLE_PENDULUM = "RllabCartPoleSwingUp-v0", "RllabDoublePendulum-v0"
CART_POLE, MOUNTAIN_CAR = "RllabCartPole-v0", "RllabMountainCar-v0"
ITERATIONS = {SWING_UP: 1000, DOUBLE_PENDULUM: 1000, CART_POLE: 50, MOUNTAIN_CAR: 50}
NETWORK = {"net_arch": [100, 50, 25]}  # tanh; orthogonal initialisation
CRITIC = {"batch_size": 500, "n_critic_updates": 2}


@dataclass(frozen=True)
class Setting:
    """One line of a table.

    :param arguments: of :class:`sb3_wng.SVPG`
    :param environments: and the best return that the paper reports on each, if it does
    :param task: options of the environment
    :param n_columns: environments of all particles together
    :param is_cross_entropy: :class:`CrossEntropy` in place of SVPG
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    environments: dict[str, float | None] = field(default_factory=lambda: {SWING_UP: None})
    task: dict[str, Any] = field(default_factory=dict)
    n_columns: int = N_COLUMNS
    is_cross_entropy: bool = False


# Best test returns: Table 1; CartPole and MountainCar are read off Fig. 2 and the same for all but joint
PUBLISHED: dict[str, dict[str, float | None]] = {
    "A2C joint": {SWING_UP: 308.71, DOUBLE_PENDULUM: -938.73, CART_POLE: 4650.0, MOUNTAIN_CAR: None},
    "A2C independent": {SWING_UP: 419.62, DOUBLE_PENDULUM: -256.64, CART_POLE: 5000.0, MOUNTAIN_CAR: -60.0},
    "A2C svpg": {SWING_UP: 436.84, DOUBLE_PENDULUM: -244.85, CART_POLE: 5000.0, MOUNTAIN_CAR: -60.0},
    "REINFORCE joint": {SWING_UP: 232.96, DOUBLE_PENDULUM: -892.31, CART_POLE: 4650.0, MOUNTAIN_CAR: None},
    "REINFORCE independent": {SWING_UP: 391.46, DOUBLE_PENDULUM: -797.45, CART_POLE: 5000.0, MOUNTAIN_CAR: -60.0},
    "REINFORCE svpg": {SWING_UP: 426.69, DOUBLE_PENDULUM: -319.66, CART_POLE: 5000.0, MOUNTAIN_CAR: -60.0},
}
# Read off Fig. 4; "0.01" stands for its limit of temperature zero
PUBLISHED_TEMPERATURES = {0.01: 230.0, 1.0: 320.0, 10.0: 390.0, 100.0: 80.0}


# Of the ablations: whether growing weights or large ones at first do what repulsion does, and what selection adds
OF_WEIGHTS = ("svpg", "radial, no interaction", "independent", "weights x 3 at first, independent")
OF_SELECTION = ("radial, selection", "weights x 3 at first, independent, selection")


def experiments() -> dict[str, dict[str, Setting]]:
    """The settings that each experiment compares, by the names they have in tables."""
    particles: dict[str, dict[str, Any]] = {
        "A2C": {"algorithm": "a2c", "algorithm_kwargs": CRITIC},
        "REINFORCE": {"algorithm": "pg"},
    }
    table = {}
    for name, published in PUBLISHED.items():
        algorithm, mode = name.split()
        table[name] = Setting({**particles[algorithm], "mode": mode}, published)
    # Not in the paper: the push alone; with REINFORCE it is among the ablations
    table["A2C radial"] = Setting({**particles["A2C"], "mode": "radial"}, {SWING_UP: None, DOUBLE_PENDULUM: None})
    svpg = Setting({"algorithm": "pg"})
    return {
        "table": table,
        "temperature": {
            f"temperature {value:g}": replace(
                svpg, arguments={**svpg.arguments, "temperature": value}, environments={SWING_UP: published}, n_columns=160
            )
            for value, published in PUBLISHED_TEMPERATURES.items()
        },
        "population_size": {
            f"{n} particles": replace(svpg, arguments={**svpg.arguments, "n_particles": n}) for n in (1, 2, 4, 8, 16, 32)
        },
        "ablations": ablations(),
        "weights": {name: replace(ablations()[name], environments={CART_POLE: None}) for name in OF_WEIGHTS},
        "weights_double_pendulum": {
            name: replace(ablations()[name], environments={DOUBLE_PENDULUM: None}) for name in (*OF_WEIGHTS, *OF_SELECTION)
        },
    }


def ablations() -> dict[str, Setting]:
    """SVPG on REINFORCE with one thing changed at a time."""
    pytorch = {"policy_kwargs": {**NETWORK, "ortho_init": False}}
    changes: dict[str, dict[str, Any]] = {
        "svpg": {},
        "independent": {"mode": "independent"},
        "joint": {"mode": "joint"},
        "radial, no interaction": {"mode": "radial"},
        "coupling, no repulsion": {"mode": "coupling"},
        "printed bandwidth": {"bandwidth": "printed"},
        "prior std 1": {"prior_std": 1.0},
        "selection": {"selection_interval": 20},
        "independent, selection": {"mode": "independent", "selection_interval": 20},
        "radial, selection": {"mode": "radial", "selection_interval": 20},
        "annealed temperature": {"temperature": AnnealedTemperature(100.0, 1.0)},
        "cyclical temperature": {"temperature": CyclicalTemperature(10.0, 1000.0)},
        "PyTorch's initialisation": pytorch,
        "PyTorch's initialisation, independent": {**pytorch, "mode": "independent"},
        "PyTorch's initialisation, radial": {**pytorch, "mode": "radial"},
        **{f"behaviour kernel x {coef:g}": {"kernel": "behavior", "behavior_coef": coef} for coef in (0.01, 0.03, 0.1)},
    }
    settings = {name: Setting({"algorithm": "pg", **change}) for name, change in changes.items()}
    for mode in ("svpg", "independent", "radial"):
        settings[f"raw angle, {mode}"] = Setting({"algorithm": "pg", "mode": mode}, task={"observation": "raw"})
        settings[f"linear baseline, {mode}"] = Setting({"algorithm": "pg_linear", "mode": mode})
    for mode, rate in itertools.product(("independent", "svpg"), (0.001, 0.002, 0.01, 0.02)):
        settings[f"learning rate {rate:g}, {mode}"] = Setting({"algorithm": "pg", "mode": mode, "learning_rate": rate})
    for scale, (name, extra) in itertools.product((3.0, 6.0), (("", {}), (", selection", {"selection_interval": 20}))):
        arguments = {"algorithm": "pg", "mode": "independent", "initial_scale": scale, **extra}
        settings[f"weights x {scale:g} at first, independent{name}"] = Setting(arguments)
    settings["one CEM per particle"] = Setting({"algorithm": "pg"}, is_cross_entropy=True)
    return settings


class Curve(BaseCallback):
    """Particles' returns and the state of the kernel, at the end of ``N_RECORDS`` rollouts; checkpoints between rollouts.

    :param n_iterations: rollouts of the run
    :param checkpoint: file that is written every ``ITERATIONS_PER_CHECKPOINT`` rollouts; ``None``: no checkpoints
    :param made_by: the run's settings, without which a checkpoint does not go on
    """

    def __init__(self, n_iterations: int, checkpoint: Path | None = None, made_by: str = "") -> None:
        super().__init__()
        self.interval = max(1, n_iterations // N_RECORDS)
        self.checkpoint, self.made_by = checkpoint, made_by
        self.n_rollouts = 0
        self.records: list[dict[str, object]] = []
        self._logged: dict[str, Any] = {}
        self._start = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> tuple[float, float]:
        """Of the clock and of the processor, that the run has taken."""
        return time.perf_counter() - self._start[0], time.process_time() - self._start[1]

    def _on_training_start(self) -> None:
        self.logger.name_to_value.update(self._logged)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.checkpoint is not None and self.n_rollouts > 0 and self.n_rollouts % ITERATIONS_PER_CHECKPOINT == 0:
            logged = dict(self.logger.name_to_value)  # of the last update, for the record at the end of this rollout
            curve = self.n_rollouts, self.records, self.seconds, logged
            state = saved(self.model), self.training_env, generator_states(), curve
            write_checkpoint(self.checkpoint, self.made_by, state)

    def resume(self) -> SVPG:
        """Continue a run's curve; its population, in environments that stand where they stood."""
        assert self.checkpoint is not None
        content, env, generators, curve = read_checkpoint(self.checkpoint, self.made_by)
        self.n_rollouts, self.records, (wall, cpu), self._logged = curve
        self._start = self._start[0] - wall, self._start[1] - cpu
        model = SVPG.load(io.BytesIO(content), env=env, device="cpu", force_reset=False)
        set_generator_states(generators)
        return model

    def _on_rollout_end(self) -> None:
        self.n_rollouts += 1
        if self.n_rollouts % self.interval:
            return
        assert isinstance(self.model, SVPG)
        self.record(self.model.mean_returns, self.num_timesteps, self.model.policy.theta, self.model.logger.name_to_value)

    def record(self, returns: NDArray[np.float64], timesteps: int, parameters: Tensor, logged: Mapping[str, float]) -> None:
        """A point of the curve: particles' returns (n,), steps so far, parameters (n, p), and what the algorithm logs."""
        self.records.append(
            {
                "iteration": self.n_rollouts,
                "timesteps": timesteps,
                "return_best": f"{returns.max():.2f}",
                "return_mean": f"{returns.mean():.2f}",
                "kernel_mean": f"{logged.get('train/kernel_mean', 0):.5f}",
                "repulsion_ratio": f"{logged.get('train/repulsion_ratio', 0):.4f}",
                "parameter_norm": f"{parameters.norm(dim=1).mean().item():.3f}",
                "wall_seconds": f"{self.seconds[0]:.1f}",
                "cpu_seconds": f"{self.seconds[1]:.1f}",
                "particle_returns": " ".join(f"{value:.1f}" for value in returns),
            }
        )


def evolve(setting: Setting, environment: str, seed: int, curve: Curve, n_iterations: int) -> None:
    """Cross-entropy methods on a setting's columns; a particle's return is the mean over its candidates."""
    candidates = replace(setting, arguments={**setting.arguments, "n_particles": setting.n_columns})
    evolution = CrossEntropy(make_model(candidates, environment, seed), setting.arguments.get("n_particles", N_PARTICLES))
    for iteration in range(1, n_iterations + 1):
        returns = evolution.iterate().mean(axis=1)
        curve.n_rollouts = iteration
        if iteration % curve.interval == 0:
            curve.record(returns, iteration * N_STEPS * setting.n_columns, evolution.means, {})


def make_model(setting: Setting, environment: str, seed: int) -> SVPG:
    """The population, with the paper's settings where nothing else is given."""
    env = make_batched(environment, setting.n_columns, seed=seed, **setting.task)
    arguments = {"n_particles": N_PARTICLES, "temperature": 10.0, "policy_kwargs": NETWORK, **setting.arguments}
    return SVPG("MlpPolicy", env, n_steps=N_STEPS, stats_window_size=20, seed=seed, device="cpu", **arguments)


def checkpoint_path(work: Path, experiment: str, name: str, environment: str, seed: int, share: float) -> Path:
    return work / file_name(f"svpg_{experiment}", name, environment, seed, f"{share:g}")


def run(
    experiment: str,
    name: str,
    environment: str,
    seed: int,
    share: float,
    models: Path | None,
    work: Path,
    deadline: float = math.inf,
) -> list[dict[str, object]]:
    """Train once, from a checkpoint if there is one; one record per point of the learning curve.

    :param models: folder where the trained population is saved, if any
    :param work: folder of checkpoints
    :param deadline: seconds since the epoch after which nothing is started, and nothing returned
    """
    if time.time() > deadline:
        return []
    torch.set_num_threads(1)
    setting = experiments()[experiment][name]
    n_iterations = max(1, round(ITERATIONS[environment] * share))
    checkpoint = checkpoint_path(work, experiment, name, environment, seed, share)
    curve = Curve(n_iterations, checkpoint, made_by=repr((environment, seed, n_iterations, setting)))
    if setting.is_cross_entropy:
        evolve(setting, environment, seed, curve, n_iterations)
    else:
        model = curve.resume() if checkpoint.exists() else make_model(setting, environment, seed)
        rest = n_iterations * N_STEPS * setting.n_columns - model.num_timesteps
        model.learn(rest, curve, log_interval=n_iterations + 1, reset_num_timesteps=False)
        if models is not None:
            model.save(models / f"{experiment}-{name}-{environment}-{seed}-{share:g}".replace(" ", "_"))
    key = {"experiment": experiment, "algorithm": name, "environment": environment, "seed": seed, "share": f"{share:g}"}
    published = setting.environments[environment]
    return [{**key, "published": "" if published is None else published, **record} for record in curve.records]


def finished_runs(path: Path) -> set[tuple[str, str, int, float]]:
    """Which runs a file has: setting, environment, seed and share of the iterations."""
    rows = read_records(path)
    return {(row["algorithm"], row["environment"], int(row["seed"]), float(row["share"])) for row in rows}


def visitation(model: SVPG, seed: int) -> NDArray[np.float64]:
    """Share of the time that the best four particles spend in each cell of position and angle, on CartPoleSwingUp.

    :return: shape (N_BINS, N_BINS), of position (-3 to 3 m) and angle (-pi to pi, zero upright)
    """
    counts = np.zeros((N_BINS, N_BINS))
    for particle in np.argsort(model.mean_returns)[-4:]:
        env = make_batched(SWING_UP, 100, seed=seed)
        observations = env.reset()
        for _ in range(N_STEPS):
            actions, _ = model.predict(observations, particle=int(particle))
            observations = env.step_batch(actions).observations
            angles = np.arctan2(observations[:, 3], observations[:, 2])
            counts += np.histogram2d(observations[:, 0], angles, N_BINS, ((-3, 3), (-np.pi, np.pi)))[0]
    return counts / counts.sum()


def write_visitation(models: Path, path: Path, share: float = 1.0) -> None:
    """One record per cell that is visited, for every method of the table on CartPoleSwingUp; mean over saved seeds."""
    shares: dict[str, list[NDArray[np.float64]]] = {}
    pattern = f"table-*-{SWING_UP}-*-{share:g}.zip"
    for file in sorted(models.glob(pattern)):
        name = file.stem.removeprefix("table-").partition(f"-{SWING_UP}-")[0].replace("_", " ")
        shares.setdefault(name, []).append(visitation(SVPG.load(file, device="cpu"), seed=1000))
    if not shares:
        raise FileNotFoundError(f"{models} has no populations that table has saved ({pattern})")
    cells = []
    for name, of_seeds in shares.items():
        mean = np.mean(of_seeds, axis=0)
        for i, j in np.argwhere(mean > 0):
            cells.append({"algorithm": name, "seeds": len(of_seeds), "position": i, "angle": j, "share": f"{mean[i, j]:.3g}"})
    write_records(path, cells)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("experiment", choices=[*experiments(), "visitation"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--share", type=float, default=1.0, help="of the published iterations")
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds after which no run is started")
    parser.add_argument("--algorithms", nargs="+", help="names in the table (default: all)")
    parser.add_argument("--environments", nargs="+", help="ids (default: all of the experiment's)")
    parser.add_argument("--models", type=Path, help="folder where trained populations are saved")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of checkpoints (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="CSV file (default: docs/benchmarks/svpg_EXPERIMENT.csv)")
    arguments = parser.parse_args()
    path = arguments.output or RESULTS / f"svpg_{arguments.experiment}.csv"
    if arguments.experiment == "visitation":
        if arguments.models is None:
            parser.error("visitation needs --models, the folder that table wrote")
        write_visitation(arguments.models, path, arguments.share)
    else:
        known = experiments()[arguments.experiment]
        if unknown := set(arguments.algorithms or ()) - set(known):
            parser.error(f"--algorithms: {arguments.experiment} has no {sorted(unknown)}; it has {list(known)}")
        tasks = {environment for setting in known.values() for environment in setting.environments}
        if unknown := set(arguments.environments or ()) - tasks:
            parser.error(f"--environments: {arguments.experiment} has no {sorted(unknown)}; it has {sorted(tasks)}")
        return 0 if run_experiment(arguments, path) else 1
    return 0


def run_experiment(arguments: argparse.Namespace, path: Path) -> bool:
    """Every run that the arguments name and the file lacks, a seed at a time; whether all are finished."""
    share = float(f"{arguments.share:g}")  # as the file has it

    def pending() -> list[tuple[str, str, int]]:
        done = finished_runs(path)
        return [
            (name, environment, seed)
            for seed in arguments.seeds
            for name, setting in experiments()[arguments.experiment].items()
            for environment in setting.environments
            if (arguments.algorithms is None or name in arguments.algorithms)
            and (arguments.environments is None or environment in arguments.environments)
            and (name, environment, seed, share) not in done
        ]

    def record(key: tuple[Any, ...], records: list[dict[str, object]]) -> bool:
        if records:
            append_records(path, records)
            name, environment, seed = key
            checkpoint_path(arguments.work, arguments.experiment, name, environment, seed, share).unlink(missing_ok=True)
        return bool(records)

    settings = {"share": share, "models": arguments.models, "work": arguments.work}
    train = partial(run, arguments.experiment, deadline=time.time() + arguments.budget, **settings)
    return run_pending(path, arguments.jobs, pending, train, record)


if __name__ == "__main__":
    sys.exit(main())
