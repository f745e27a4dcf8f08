import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import sb3_wng  # noqa: F401 - registers the regulator
from sb3_wng.envs.linear_quadratic import CURVATURE, GAIN, LinearQuadraticEnv, P, Q, R


def test_the_regulator_is_a_gymnasium_environment_of_eight_steps():
    env = gym.make("LinearQuadratic-v0")
    check_env(env.unwrapped)
    env.reset(seed=0)
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(8)]
    assert ends == [(False, False)] * 7 + [(False, True)]


def test_the_regulators_reward_is_the_excess_of_its_cost_over_the_optimum():
    env = LinearQuadraticEnv()
    env.reset(seed=0)
    for _ in range(20):
        x, u = env._state.copy(), np.random.default_rng(1).normal(size=2)
        _, reward, *_ = env.step(u)
        x_next = env._state
        cost = x @ Q @ x + u @ R @ u + x_next @ P @ x_next - x @ P @ x
        assert -reward == pytest.approx(cost, rel=1e-9)


def test_the_regulator_is_drawn_as_two_points_that_come_to_the_middle():
    env = gym.make("LinearQuadratic-v0", render_mode="rgb_array")
    env.reset(seed=0)
    pictures = [env.render()]
    for _ in range(8):
        env.step(-GAIN @ env.unwrapped._state)
        pictures.append(env.render())
    assert pictures[0].shape == (320, 320, 3)

    def painted(picture):
        rows, columns = np.nonzero((picture != 255).any(axis=2))
        return np.hypot(rows - 160, columns - 160).max()

    assert painted(pictures[-1]) < painted(pictures[0])
    assert LinearQuadraticEnv().render() is None
    with pytest.raises(ValueError, match="render_mode must be 'rgb_array'"):
        LinearQuadraticEnv("ansi")


def test_nothing_beats_the_regulators_optimum():
    env = LinearQuadraticEnv()
    env.reset(seed=0)
    assert all(np.linalg.eigvalsh(CURVATURE) > 0)
    assert env.step(-GAIN @ env._state)[1] == pytest.approx(0, abs=1e-12)
    assert env.step(-GAIN @ env._state + [0.1, 0])[1] < -1e-4
