"""A hilly grid world: the attraction experiment of arXiv 1802.03976, which prints neither its map nor its costs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_wng.envs.rendering import BLUE, DARK, GREEN, WHITE, Canvas

GridObservation = Literal["cell", "one_hot"]

# Two valleys run around a mountain, each over one pass: along the lower edge (return -29, the only optimum) and along the
# upper edge (-30). The first row is the upper one.
HEIGHTS = np.array(
    [
        [1, 0, 1, 2, 3, 2, 1, 0, 1, 0],
        [0, 3, 5, 6, 7, 6, 5, 4, 2, 1],
        [1, 4, 7, 8, 9, 9, 8, 6, 3, 1],
        [2, 5, 8, 9, 9, 9, 9, 7, 4, 2],
        [1, 3, 6, 8, 9, 8, 7, 6, 4, 1],
        [0, 1, 3, 5, 6, 5, 5, 3, 2, 0],
        [0, 0, 0, 1, 3, 3, 1, 1, 0, 0],
    ]
)
N_ROWS, N_COLUMNS = HEIGHTS.shape
N_CELLS = HEIGHTS.size
START = N_CELLS - N_COLUMNS
GOAL = N_COLUMNS - 1
MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])  # up, right, down, left


def _next_cells() -> NDArray[np.int64]:
    """The cell that each action leads to from each cell, (70, 4); moves over the edge lead nowhere."""
    places = np.stack(np.divmod(np.arange(N_CELLS), N_COLUMNS), axis=1)[:, None] + MOVES
    rows, columns = np.clip(places, 0, np.array(HEIGHTS.shape) - 1).transpose(2, 0, 1)
    return rows * N_COLUMNS + columns


NEXT_CELLS = _next_cells()
CELL_COSTS = 1.0 + HEIGHTS.ravel()
for _constant in (HEIGHTS, NEXT_CELLS, CELL_COSTS):
    _constant.setflags(write=False)


def cheapest_route(avoid: Collection[int] = ()) -> list[int]:
    """The cells of the cheapest route from start to goal, both included, by Dijkstra's algorithm.

    ``cheapest_route(avoid=cheapest_route()[1:-1])`` is the second route, which shares no other cell with the first.

    :param avoid: cells that must not be entered
    :raises ValueError: if no route is left
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import dijkstra

    costs = np.zeros((N_CELLS, N_CELLS))
    costs[np.arange(N_CELLS)[:, None], NEXT_CELLS] = CELL_COSTS[NEXT_CELLS]
    costs[:, list(avoid)] = 0  # no edge
    distances, predecessors = dijkstra(csr_array(costs), indices=START, return_predecessors=True)
    if not np.isfinite(distances[GOAL]):
        raise ValueError("no route to the goal is left: avoid fewer cells")
    route = [GOAL]
    while route[-1] != START:
        route.append(int(predecessors[route[-1]]))
    return route[::-1]


def route_return(route: list[int]) -> float:
    """Undiscounted return of a route of cells; the first one is not paid for."""
    return -float(CELL_COSTS[route[1:]].sum())


@dataclass(frozen=True, kw_only=True)
class HillGrid:
    """Cross 7 x 10 cells from the lower left to the upper right corner over low ground: ``HillGrid-v0``.

    Entering a cell costs 1 + its height; a move over the edge stays and pays for the same cell. An episode ends at the
    goal, or at the time-out with an extra penalty. Both terminate: the penalty is part of the task, not a training limit.
    Waiting on flat ground until the time-out is the local optimum.

    State: cell and steps taken. Action: up, right, down, left. Observation: the cell, row * 10 + column, or its one-hot
    code (70).

    :param timeout: steps until the episode ends; the source has 30, 40 and 50. A route takes at least 15
    :param timeout_penalty: subtracted from the last reward at the time-out
    :param observation: "cell" or "one_hot"
    """

    timeout: int = 40
    timeout_penalty: float = 20.0
    observation: GridObservation = "cell"
    max_episode_steps: ClassVar[None] = None
    render_fps: ClassVar[int] = 5

    def __post_init__(self) -> None:
        if self.timeout < 15:
            raise ValueError(f"timeout must be at least 15, the steps that the shortest route takes, got {self.timeout}")
        if self.timeout_penalty < 0:
            raise ValueError(f"timeout_penalty is subtracted and must not be negative, got {self.timeout_penalty}")
        if self.observation not in get_args(GridObservation):
            raise ValueError(f'observation must be "cell" or "one_hot", got "{self.observation}"')

    @property
    def observation_space(self) -> spaces.Discrete | spaces.Box:
        return spaces.Discrete(N_CELLS) if self.observation == "cell" else spaces.Box(0, 1, (N_CELLS,), np.float32)

    @property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(len(MOVES))

    def reset(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        return np.repeat([[START, 0]], n, axis=0)

    def step(
        self, states: NDArray[np.int64], actions: NDArray[np.integer]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
        if len(actions) and not 0 <= actions.min() <= actions.max() < len(MOVES):
            raise ValueError(f"actions must be 0 (up), 1 (right), 2 (down) or 3 (left), got {np.unique(actions)}")
        cells, elapsed = states.T
        cells = NEXT_CELLS[cells, actions]
        arrived = cells == GOAL
        late = (elapsed + 1 >= self.timeout) & ~arrived
        rewards = -CELL_COSTS[cells] - self.timeout_penalty * late
        return np.stack([cells, elapsed + 1]).T, rewards, arrived | late

    def observe(self, states: NDArray[np.int64]) -> NDArray[np.generic]:
        cells = states[:, 0]
        return cells.copy() if self.observation == "cell" else np.eye(N_CELLS, dtype=np.float32)[cells]

    def render(self, state: NDArray[np.int64]) -> NDArray[np.uint8]:
        canvas = Canvas((0, N_COLUMNS), (0, N_ROWS), width=500)
        low, high = np.array([[237, 242, 228], [133, 88, 50]])
        for cell in range(N_CELLS):
            red, green, blue = np.round(low + (high - low) * HEIGHTS.flat[cell] / HEIGHTS.max()).astype(int)
            canvas.box(_center(cell), (0.96, 0.96), (int(red), int(green), int(blue)))
        canvas.box(_center(START), (0.7, 0.7), BLUE)
        canvas.box(_center(START), (0.58, 0.58), WHITE)
        canvas.box(_center(GOAL), (0.7, 0.7), GREEN)
        canvas.disc(_center(int(state[0])), 0.22, DARK)
        return canvas.image


def _center(cell: int) -> tuple[float, float]:
    row, column = divmod(cell, N_COLUMNS)
    return column + 0.5, N_ROWS - row - 0.5
