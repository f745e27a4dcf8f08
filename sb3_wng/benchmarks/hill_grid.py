"""Attraction to a given route on ``HillGrid-v0``: REINFORCE with a softmax of radial basis functions, many runs at once.

The signal of the distance is the package's: minus ``coefficient * (u - mean u) / l``, in units of the returns' spread, with u
the potential of an episode's visit frequencies and l the root of their total variance. With one target point, u is the
distance from it; with two routes, :class:`sb3_wng.geometry.SemiDiscreteDual` learns it. Departure from the source: updates
after batches of ten episodes instead of one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sb3_wng.benchmarks.records import append_records, read_records
from sb3_wng.envs.grid import (
    GOAL,
    HEIGHTS,
    MOVES,
    N_CELLS,
    N_COLUMNS,
    NEXT_CELLS,
    START,
    HillGrid,
    cheapest_route,
    route_return,
)
from sb3_wng.geometry import SemiDiscreteDual

Array = NDArray[np.float64]

N_EPISODES = 12_000
BATCH = 10
N_RECORDS = 20
TIMEOUTS = (30, 40, 50)
RATE = 0.5  # of plain ascent, on standardised returns
FORGETTING = 0.05  # of the running mean and spread
COEFFICIENT = 4.0
N_ACTIONS = len(MOVES)
TARGETS = {"no attraction": 0, "one route": 1, "two routes": 2}


def routes(n: int) -> list[list[int]]:
    """The cheapest route, and the cheapest one that shares no cell with it."""
    first = cheapest_route()
    return [first, cheapest_route(avoid=first[1:-1])][:n]


def frequencies(route: list[int]) -> Array:
    """Visit frequencies of the cells entered, shape (70,)."""
    return np.bincount(route[1:], minlength=N_CELLS) / (len(route) - 1)


def basis(n_rows: int = 4, n_columns: int = 5) -> Array:
    """Normalised Gaussian bumps on a lattice over the grid, shape (70, n_rows * n_columns)."""
    rows, columns = np.divmod(np.arange(N_CELLS), N_COLUMNS)
    centers = np.stack(np.meshgrid(np.linspace(0, HEIGHTS.shape[0] - 1, n_rows), np.linspace(0, N_COLUMNS - 1, n_columns)))
    spacing = np.array([(HEIGHTS.shape[0] - 1) / (n_rows - 1), (N_COLUMNS - 1) / (n_columns - 1)])
    offsets = (np.stack([rows, columns], axis=1)[:, None] - centers.reshape(2, -1).T) / spacing
    bumps = np.exp(-np.square(offsets).sum(axis=2))
    return bumps / bumps.sum(axis=1, keepdims=True)


BASIS = basis()


def action_probabilities(theta: Array) -> Array:
    """Of weights (..., f, 4): shape (..., 70, 4)."""
    logits = BASIS @ theta
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@dataclass
class Episodes:
    """What b runs of n episodes each did."""

    counts: Array  # (b, n, 70, 4): how often each action was taken in each cell
    visits: Array  # (b, n, 70): frequencies of the cells entered
    returns: Array  # (b, n)
    arrived: NDArray[np.bool_]  # (b, n)


def act(probabilities: Array, task: HillGrid, rngs: list[np.random.Generator], n: int) -> Episodes:
    """Episodes of policies (b, 70, 4), each run with its own generator."""
    b = len(probabilities)
    draws = np.stack([rng.random((task.timeout, n)) for rng in rngs], axis=1)
    thresholds = probabilities.cumsum(axis=2)
    states = task.reset(rngs[0], b * n)
    owner = np.repeat(np.arange(b), n)
    counts, entered = np.zeros((b * n, N_CELLS, N_ACTIONS)), np.zeros((b * n, N_CELLS))
    returns, running = np.zeros(b * n), np.arange(b * n)
    arrived = np.zeros(b * n, bool)
    for draw in draws.reshape(task.timeout, -1):
        cells = states[:, 0]
        above = draw[running, None] > thresholds[owner[running], cells]
        actions = np.minimum(above.sum(axis=1), N_ACTIONS - 1)
        counts[running, cells, actions] += 1
        states, rewards, terminated = task.step(states, actions)
        returns[running] += rewards
        entered[running, states[:, 0]] += 1
        arrived[running] = states[:, 0] == GOAL
        running, states = running[~terminated], states[~terminated]
        if not len(running):
            break
    visits = entered / entered.sum(axis=1, keepdims=True)
    shape = (b, n)
    return Episodes(
        counts.reshape(*shape, N_CELLS, N_ACTIONS),
        visits.reshape(*shape, N_CELLS),
        returns.reshape(shape),
        arrived.reshape(shape),
    )


class Attraction:
    """Signal of one run's distance from its target, batch by batch.

    :param target: visit frequencies of the target's routes, shape (m, 70)
    """

    def __init__(self, target: Array) -> None:
        self.target = target
        atoms = torch.as_tensor(target)
        self.dual = SemiDiscreteDual(atoms, entropic_reg=0.02, rate=0.1) if len(target) > 1 else None

    def __call__(self, visits: Array) -> Array:
        """Potential of episodes (n, 70) in units of the points' spread, with mean 0; shape (n,)."""
        if self.dual is None:
            potential: Array = np.linalg.norm(visits - self.target[0], axis=1)
        else:
            points = torch.as_tensor(visits)
            self.dual.update(points)
            potential = self.dual.signal(points).numpy()
        spread = np.concatenate([visits, self.target]).var(axis=0, ddof=1).sum()
        result: Array = (potential - potential.mean()) / max(np.sqrt(spread), 1e-12)
        return result


def train(timeout: int, n_routes: int, seeds: list[int], coefficient: float = COEFFICIENT, rate: float = RATE) -> list[dict]:
    """REINFORCE with a running baseline; records of all seeds.

    :param n_routes: of the target; 0: no attraction
    """
    task, rngs = HillGrid(timeout=timeout), [np.random.default_rng(seed) for seed in seeds]
    theta = np.zeros((len(seeds), BASIS.shape[1], N_ACTIONS))
    target = np.array([frequencies(route) for route in routes(n_routes)])
    attractions = [Attraction(target) for _ in seeds] if n_routes else []
    mean, square = np.zeros(len(seeds)), np.zeros(len(seeds))
    n_batches, start = N_EPISODES // BATCH, (time.perf_counter(), time.process_time())
    interval, records, recent = n_batches // N_RECORDS, [], []
    for batch in range(1, n_batches + 1):
        probabilities = action_probabilities(theta)
        episodes = act(probabilities, task, rngs, BATCH)
        share = max(FORGETTING, 1 / batch)
        mean += share * (episodes.returns.mean(axis=1) - mean)
        square += share * (np.square(episodes.returns - mean[:, None]).mean(axis=1) - square)
        advantages = (episodes.returns - mean[:, None]) / np.maximum(np.sqrt(square), 1e-8)[:, None]
        if attractions:
            signals = [attraction(visits) for attraction, visits in zip(attractions, episodes.visits, strict=True)]
            advantages -= coefficient * np.array(signals)
        theta += rate * score_gradient(episodes.counts, probabilities, advantages)
        recent.append((episodes.returns.mean(axis=1), episodes.arrived.mean(axis=1), nearest_first(episodes)))
        if batch % interval == 0:
            seconds = time.perf_counter() - start[0], time.process_time() - start[1]
            records += describe(batch * BATCH, seeds, recent, theta, timeout, seconds)
            recent = []
    return records


def score_gradient(counts: Array, probabilities: Array, advantages: Array) -> Array:
    """Mean over episodes (b, n) of advantage times the gradient of the path's log-probability; shape (b, f, 4)."""
    weighted = np.einsum("bn,bnsa->bsa", advantages, counts) / advantages.shape[1]
    return np.swapaxes(BASIS, 0, 1) @ (weighted - weighted.sum(axis=2, keepdims=True) * probabilities)


def nearest_first(episodes: Episodes) -> Array:
    """Share of each run's episodes whose visits are nearer to the cheapest route than to the second, shape (b,)."""
    first, second = (np.linalg.norm(episodes.visits - frequencies(route), axis=2) for route in _ROUTES)
    shares: Array = (first < second).mean(axis=1)
    return shares


_ROUTES = routes(2)


def greedy_return(theta: Array, timeout: int) -> float:
    """Return of the most probable action in every cell, with weights (f, 4)."""
    choice, task = action_probabilities(theta).argmax(axis=1), HillGrid(timeout=timeout)
    states, total = np.array([[START, 0]]), 0.0
    for _ in range(timeout):
        states, rewards, terminated = task.step(states, choice[states[:, 0]])
        total += float(rewards[0])
        if terminated[0]:
            break
    return total


def describe(
    n_episodes: int, seeds: list[int], recent: list, theta: Array, timeout: int, seconds: tuple[float, float]
) -> list[dict]:
    """One record per seed; the seconds are shared by all of them."""
    returns, arrived, first = (np.mean(part, axis=0) for part in zip(*recent, strict=True))
    return [
        {
            "timeout": timeout,
            "seed": seed,
            "episodes": n_episodes,
            "return": f"{returns[i]:.2f}",
            "arrived": f"{arrived[i]:.3f}",
            "nearest_first": f"{first[i]:.3f}",
            "greedy_return": f"{greedy_return(theta[i], timeout):.1f}",
            "wall_seconds": f"{seconds[0] / len(seeds):.2f}",
            "cpu_seconds": f"{seconds[1] / len(seeds):.2f}",
        }
        for i, seed in enumerate(seeds)
    ]


def clone(n_routes: int, n_updates: int = N_EPISODES // BATCH, rate: float = 20 * RATE) -> Array:
    """Weights (f, 4) that make the actions of the routes most probable: behaviour cloning of the target."""
    counts = np.zeros((1, n_routes, N_CELLS, N_ACTIONS))
    for i, route in enumerate(routes(n_routes)):
        for cell, following in pairwise(route):
            counts[0, i, cell, int(np.flatnonzero(NEXT_CELLS[cell] == following)[0])] += 1 / (len(route) - 1)
    theta = np.zeros((1, BASIS.shape[1], N_ACTIONS))
    for _ in range(n_updates):
        theta += rate * score_gradient(counts, action_probabilities(theta), np.ones((1, n_routes)))
    return theta[0]


def cloned(timeout: int, n_routes: int, seeds: list[int]) -> list[dict]:
    """Episodes of the cloned policy, as many as one record of training has; nothing is random but they."""
    start = time.perf_counter(), time.process_time()
    theta = np.repeat(clone(n_routes)[None], len(seeds), axis=0)
    n, rngs = N_EPISODES // N_RECORDS, [np.random.default_rng(seed) for seed in seeds]
    episodes = act(action_probabilities(theta), HillGrid(timeout=timeout), rngs, n)
    recent = [(episodes.returns.mean(axis=1), episodes.arrived.mean(axis=1), nearest_first(episodes))]
    seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    return describe(0, seeds, recent, theta, timeout, seconds)


def study(path: Path, seeds: list[int]) -> None:
    """Every combination of target, time-out and seed that the file lacks."""
    done = {(row["algorithm"], int(row["timeout"]), int(row["seed"])) for row in read_records(path)}
    for timeout in TIMEOUTS:
        for name, n_routes in TARGETS.items():
            if missing := [seed for seed in seeds if (name, timeout, seed) not in done]:
                records = train(timeout, n_routes, missing)
                append_records(path, [{"experiment": "grid", "algorithm": name, **record} for record in records])
                print(name, timeout, [(r["return"], r["greedy_return"]) for r in records[-len(missing) :]], flush=True)
            missing = [seed for seed in seeds if (f"cloning of {name}", timeout, seed) not in done]
            if n_routes and missing:
                records = cloned(timeout, n_routes, missing)
                append_records(path, [{"experiment": "grid", "algorithm": f"cloning of {name}", **r} for r in records])
    print("optimum", route_return(cheapest_route()))
