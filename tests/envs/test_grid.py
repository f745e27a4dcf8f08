"""The hill grid's costs, ends and routes; Dijkstra's optimum against value iteration on the environment's own steps."""

from itertools import pairwise

import numpy as np
import pytest

from sb3_wng.envs.grid import GOAL, HEIGHTS, N_CELLS, START, HillGrid, cheapest_route, route_return

UP, RIGHT, DOWN, LEFT = range(4)


def play(task, actions):
    states = task.reset(np.random.default_rng(0), 1)
    rewards, terminated = [], False
    for action in actions:
        assert not terminated
        states, reward, (terminated,) = task.step(states, np.array([action]))
        rewards.append(float(reward[0]))
    return int(states[0, 0]), rewards, bool(terminated)


def actions_of(route):
    moves = {-10: UP, 1: RIGHT, 10: DOWN, -1: LEFT}
    return [moves[there - here] for here, there in pairwise(route)]


def test_the_map_is_seven_by_ten_with_the_start_lower_left_and_the_goal_upper_right():
    assert HEIGHTS.shape == (7, 10)
    assert (START, GOAL) == (60, 9)
    assert HEIGHTS.min() == 0


def test_entering_a_cell_costs_one_and_its_height():
    cell, rewards, _ = play(HillGrid(), [RIGHT, UP, UP, LEFT, DOWN])
    assert cell == 50
    assert rewards == [-1 - HEIGHTS[r, c] for r, c in [(6, 1), (5, 1), (4, 1), (4, 0), (5, 0)]]


@pytest.mark.parametrize("action", [DOWN, LEFT])
def test_a_move_over_the_edge_stays_and_pays(action):
    assert play(HillGrid(), [action]) == (START, [-1.0], False)


@pytest.mark.parametrize("timeout", [30, 40, 50])
def test_the_time_out_ends_the_episode_with_its_penalty(timeout):
    cell, rewards, terminated = play(HillGrid(timeout=timeout, timeout_penalty=7), [DOWN] * timeout)
    assert terminated
    assert cell == START
    assert rewards == [-1] * (timeout - 1) + [-8]


def test_arriving_at_the_time_out_is_not_penalised():
    actions = actions_of(cheapest_route())
    cell, rewards, terminated = play(HillGrid(timeout=len(actions)), actions)
    assert terminated
    assert cell == GOAL
    assert rewards[-1] == -1


def test_the_optimum_is_value_iterations_on_the_environments_own_steps():
    task = HillGrid(timeout=10**6)
    cells, actions = np.divmod(np.arange(4 * N_CELLS), 4)
    nexts, rewards, _ = task.step(np.stack([cells, np.zeros_like(cells)]).T, actions)
    values = np.zeros(N_CELLS)
    for _ in range(200):
        values = (rewards + values[nexts[:, 0]]).reshape(N_CELLS, 4).max(1)
        values[GOAL] = 0
    route = cheapest_route()
    assert route_return(route) == values[START] == -29
    assert sum(play(task, actions_of(route))[1]) == -29


@pytest.mark.parametrize("timeout", [30, 40, 50])
def test_crossing_beats_waiting_on_flat_ground(timeout):
    _, waiting, _ = play(HillGrid(timeout=timeout), [LEFT] * timeout)
    assert route_return(cheapest_route()) > sum(waiting) + 20


def test_the_optimum_is_unique_and_a_second_route_elsewhere_is_nearly_as_good():
    best = cheapest_route()
    second = cheapest_route(avoid=best[1:-1])
    assert set(best) & set(second) == {START, GOAL}
    assert route_return(second) == -30
    # Without any one of its cells the return falls: no other route is as good
    assert all(route_return(cheapest_route(avoid=[cell])) < route_return(best) for cell in best[1:-1])


def test_no_route_left_is_said():
    with pytest.raises(ValueError, match="avoid fewer cells"):
        cheapest_route(avoid=[50, 61])


def test_one_hot_observations_mark_the_cell():
    task = HillGrid(observation="one_hot")
    states = np.array([[START, 0], [GOAL, 3]])
    observations = task.observe(states)
    assert observations.shape == (2, 70)
    np.testing.assert_array_equal(observations.argmax(1), HillGrid().observe(states))
    np.testing.assert_array_equal(observations.sum(1), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 14}, "at least 15"),
        ({"timeout_penalty": -1}, "must not be negative"),
        ({"observation": "row"}, "one_hot"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HillGrid(**options)


@pytest.mark.parametrize("action", [-1, 4])
def test_unknown_actions_are_refused(action):
    with pytest.raises(ValueError, match=r"0 \(up\)"):
        play(HillGrid(), [action])
