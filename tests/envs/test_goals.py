"""Geometry of the plane with goals."""

import numpy as np
import pytest

from sb3_wng.envs.goals import TwoGoals, circle_of_goals


def walk(task, actions):
    states = task.reset(np.random.default_rng(0), 1)
    rewards = []
    for action in actions:
        states, reward, terminated = task.step(states, np.array([action], np.float32))
        assert not terminated[0]
        rewards.append(float(reward[0]))
    return states[0], rewards


def test_episodes_start_at_the_origin():
    np.testing.assert_array_equal(TwoGoals().reset(np.random.default_rng(0), 3), np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("action", "moved"), [((1, 0), (0.25, 0)), ((0, -0.5), (0, -0.125)), ((3, -4), (0.15, -0.2)), ((0, 0), (0, 0))]
)
def test_a_step_is_a_quarter_of_the_action_and_never_longer(action, moved):
    np.testing.assert_allclose(walk(TwoGoals(), [action])[0], moved, atol=1e-7)


def test_the_reward_is_minus_the_distance_to_the_nearest_goal():
    position, rewards = walk(TwoGoals(), [(-0.8, 0.6)] * 10)
    np.testing.assert_allclose(rewards, -np.arange(2.25, -0.01, -0.25), atol=1e-6)
    np.testing.assert_allclose(position, (-2, 1.5), atol=1e-6)
    assert walk(TwoGoals(), [(0.8, 0.6)] * 10)[1] == pytest.approx(rewards)


def test_walking_straight_to_a_goal_and_staying_beats_standing_between_both():
    _, straight = walk(TwoGoals(), [(0.8, 0.6)] * 10 + [(0, 0)] * 10)
    _, between = walk(TwoGoals(), [(0, 1)] * 6 + [(0, 0)] * 14)
    assert sum(straight) == pytest.approx(-11.25)
    assert sum(between) < -35


def test_walls_stop_the_walk():
    position, _ = walk(TwoGoals(extent=3.0), [(1, 0)] * 20)
    np.testing.assert_array_equal(position, (3, 0))


@pytest.mark.parametrize("n_goals", [1, 2, 3, 4, 7])
def test_goals_on_a_circle_are_equally_far_from_the_start_and_from_each_other(n_goals):
    goals = np.array(circle_of_goals(n_goals))
    np.testing.assert_allclose(np.linalg.norm(goals, axis=1), 2.5)
    gaps = np.linalg.norm(goals - np.roll(goals, 1, axis=0), axis=1)
    np.testing.assert_allclose(gaps, gaps[0])
    assert TwoGoals(goals=circle_of_goals(n_goals)).distances(*goals.T) == pytest.approx(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goals": [1.0, 2.0]}, "list of points"),
        ({"goals": []}, "list of points"),
        ({"goals": [[9.0, 0.0]]}, "inside the walls"),
        ({"max_episode_steps": 0}, "at least 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TwoGoals(**options)
