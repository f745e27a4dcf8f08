"""Two gaits of one robot: ``python -m sb3_wng.benchmarks.gait_study [--seeds 0 1 ...] [--jobs 1]``.

Pairs of policies learn to run on ``HalfCheetahBulletEnv-v0``, each on 250,000 steps: from scratch, or as copies of one policy
that WNPG trained for as long before; independent of each other, or repelled for a while by posture and by which feet touch the
ground (:func:`gait`). The settings are those of WNPG in ``zoo_hyperparams/``; the coefficients were chosen on other seeds. A
run that is in the output file is not repeated, a single policy that is in its folder neither.

Columns: ``return_0``, ``return_1``: mean return of noise-free episodes. ``distance``: squared Wasserstein-2 distance between
both policies' windows of 32 steps, in units of the variance of one policy's (exact, :data:`N_WINDOWS` of each); ``gait_0``,
``gait_1``: mean pitch (rad), and how much of the time the front and the hind foot touch the ground.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_wng import WNPG
from sb3_wng.behavior import Trajectories, Trajectory, collect_trajectories, make_embedding, spread
from sb3_wng.behavior.callbacks import squared_wasserstein_distance
from sb3_wng.benchmarks.models import make_env, register_environments, shipped_hyperparameters
from sb3_wng.benchmarks.pool import run_pending
from sb3_wng.benchmarks.records import RESULTS, append_records, read_records
from sb3_wng.population import WassersteinPopulation
from sb3_wng.population.arguments import Coefficient

ENVIRONMENT = "HalfCheetahBulletEnv-v0"
N_STEPS = 250_000  # of each policy
N_EPISODES = 10
N_WINDOWS = 128
N_FRAMES = 8
FRAME_INTERVAL = 3  # steps of 1/60 s
STRIDE = 24  # steps among which the first frame is chosen
CAMERA = 1.4, -10  # distance (m) and pitch (degrees)
# Of the robot's observation: pitch and joints are angles (rad), the rest says what touches the ground
PITCH, JOINTS, CONTACTS, FRONT, HIND = [7], list(range(8, 20, 2)), list(range(20, 26)), 20, 23


@dataclass(frozen=True)
class Phase:
    """A coefficient in one part of training, and none outside of it: at the end each policy is to get good at its own gait.

    :param start: fraction of training after which it holds
    :param end: fraction of training up to which it holds
    """

    coefficient: float
    start: float
    end: float

    def __call__(self, progress_remaining: float) -> float:
        return self.coefficient if self.start < 1 - progress_remaining <= self.end else 0.0


@dataclass(frozen=True)
class Pair:
    """How two policies are trained.

    :param of_copies: whether both begin as copies of one trained policy
    """

    wasserstein_coef: Coefficient
    of_copies: bool


PAIRS = {
    "independent": Pair(0.0, of_copies=False),
    "repelled": Pair(Phase(-0.07, 0.2, 0.6), of_copies=False),  # none before policies can run
    "copies": Pair(0.0, of_copies=True),
    "repelled copies": Pair(Phase(-0.6, 0.0, 0.7), of_copies=True),
}


def gait(trajectory: Trajectory) -> torch.Tensor:
    """Mean pitch and joint angles, and how much of a window each part of the legs touches the ground; shape (13,)."""
    return trajectory.observations[:, PITCH + JOINTS + CONTACTS].mean(dim=0)


def summary(windows: Trajectories) -> str:
    """Mean pitch (rad), and how much of the time the front and the hind foot touch the ground."""
    means = windows.observations[windows.mask][:, [*PITCH, FRONT, HIND]].mean(dim=0)
    return " ".join(f"{value:.2f}" for value in means.tolist())


def single_path(folder: Path, seed: int) -> Path:
    return folder / "gaits" / f"single-{seed}"


def train_single(seed: int, folder: Path) -> None:
    """Train and keep the policy whose copies become pairs, unless it is there."""
    path = single_path(folder, seed)
    if statistics(path).exists():  # written last
        return
    torch.set_num_threads(1)
    arguments = shipped_hyperparameters("wnpg", ENVIRONMENT)
    env = make_env(ENVIRONMENT, arguments, seed)
    assert isinstance(env, VecNormalize)
    model = WNPG("MlpPolicy", env, seed=seed, device="cpu", **arguments)
    model.learn(N_STEPS, log_interval=10**9)
    model.save(path)
    env.save(str(statistics(path)))


def statistics(saved: Path) -> Path:
    """Where the normalisation of a saved model's environment is."""
    return saved.with_name(f"{saved.name}-statistics.pkl")


def make_model(name: str, seed: int, single: Path) -> WassersteinPopulation:
    """A pair before its training.

    :param single: the saved policy that pairs of copies begin as
    """
    pair, arguments = PAIRS[name], shipped_hyperparameters("wnpg", ENVIRONMENT)
    arguments["n_envs"] *= 2
    env = make_env(ENVIRONMENT, arguments, seed)
    assert isinstance(env, VecNormalize)
    shared = ("n_steps", "gamma", "gae_lambda")
    model = WassersteinPopulation(
        "MlpPolicy",
        VecNormalize.load(str(statistics(single)), env.venv) if pair.of_copies else env,
        "wnpg",
        n_policies=2,
        wasserstein_coef=pair.wasserstein_coef,
        embedding=gait,
        **{key: arguments.pop(key) for key in shared},
        algorithm_kwargs=arguments,
        seed=seed,
        device="cpu",
    )
    if pair.of_copies:
        trained = WNPG.load(single, device="cpu").policy.state_dict()
        for policy in model.policy:
            policy.load_state_dict(trained)
    return model


def measure(model: WassersteinPopulation) -> dict[str, object]:
    """What the two policies do without noise."""
    env = model.get_env()
    assert isinstance(env, VecNormalize)
    env.training, env.norm_reward = False, False
    policies = [particle.learner for particle in model.particles]
    returns = [evaluate_policy(policy, env, N_EPISODES)[0] for policy in policies]
    windows = [collect_trajectories(policy, env, 32 * N_WINDOWS, deterministic=True) for policy in policies]
    points = [make_embedding(gait)(part).double()[:N_WINDOWS] for part in windows]
    unit = np.mean([spread(part) for part in points])
    return {
        **{f"return_{i}": f"{value:.1f}" for i, value in enumerate(returns)},
        "distance": f"{squared_wasserstein_distance(*points) / unit:.3f}",
        **{f"gait_{i}": summary(part) for i, part in enumerate(windows)},
    }


def run(seed: int, name: str, folder: Path) -> None:
    """Train a pair, keep it under ``folder/gaits``, and add its record to the file."""
    torch.set_num_threads(1)
    model = make_model(name, seed, single_path(folder, seed))
    start = time.process_time()
    model.learn(2 * N_STEPS, log_interval=10**9)
    seconds = time.process_time() - start
    saved = folder / "gaits" / f"{name}-{seed}"
    model.save(saved)
    model.get_vec_normalize_env().save(str(statistics(saved)))  # type: ignore[union-attr]
    record = {
        "experiment": "gaits",
        "algorithm": name,
        "environment": ENVIRONMENT,
        "seed": seed,
        "timesteps": model.num_timesteps,
        **measure(model),
        "cpu_seconds": f"{seconds:.1f}",
    }
    append_records(folder / "multipolicy_gaits.csv", [record])
    print(name, seed, record["return_0"], record["return_1"], record["distance"], flush=True)


def film_strip(saved: Path, after: int = 200) -> NDArray[np.uint8]:
    """Both policies of a saved pair, one above the other, in frames side by side: shape (height, width, 3).

    Rows begin at the same phase of the gait: where the robot's nose is highest.

    :param after: steps before the first frame, in which the robot gets up to speed
    """
    register_environments()
    plain = DummyVecEnv([lambda: gymnasium.make(ENVIRONMENT, render_mode="rgb_array")])
    camera: Any = plain.envs[0].unwrapped
    camera._cam_dist, camera._cam_pitch = CAMERA
    env = VecNormalize.load(str(statistics(saved)), plain)
    env.training = False
    env.seed(0)
    model = WassersteinPopulation.load(saved, device="cpu")
    rows = []
    for policy in range(2):
        frames: list[NDArray[np.uint8]] = []
        pitches: list[float] = []
        observations: Any = env.reset()
        for step in range(after + N_FRAMES * FRAME_INTERVAL + STRIDE):
            actions, _ = model.predict(observations, particle=policy, deterministic=True)
            observations, *_ = env.step(actions)
            if step >= after:
                frame = env.render()
                assert frame is not None
                frames.append(frame)
                pitches.append(float(env.get_original_obs()[0, PITCH[0]]))  # type: ignore[index]
        first = int(np.argmin(pitches[:STRIDE]))
        rows.append(np.concatenate(frames[first::FRAME_INTERVAL][:N_FRAMES], axis=1))
    env.close()
    return np.concatenate(rows)


def draw(saved: Path, path: Path) -> None:
    """Write the film strip of a saved pair."""
    import matplotlib.image

    matplotlib.image.imsave(path, film_strip(saved))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    parser.add_argument("--film", metavar="SEED", type=int, help="draw a trained pair instead")
    arguments = parser.parse_args()
    if arguments.film is not None:
        draw(
            arguments.folder / "gaits" / f"repelled copies-{arguments.film}", arguments.folder / f"gaits-{arguments.film}.png"
        )
        return 0
    path = arguments.folder / "multipolicy_gaits.csv"

    def pending() -> list[tuple[int, str]]:
        done = {(row["algorithm"], int(row["seed"])) for row in read_records(path)}
        return [(seed, name) for seed in arguments.seeds for name in arguments.pairs if (name, seed) not in done]

    def singles() -> list[tuple[int]]:
        return [(seed,) for seed in dict.fromkeys(seed for seed, name in pending() if PAIRS[name].of_copies)]

    steps = (singles, train_single), (pending, run)  # which record
    results = [
        run_pending(path, arguments.jobs, keys, partial(do, folder=arguments.folder), lambda *_: True) for keys, do in steps
    ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    # not this module's own: what is pickled with a policy has to be found in other processes, too
    from sb3_wng.benchmarks.gait_study import main as study

    sys.exit(study())
