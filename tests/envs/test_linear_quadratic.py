import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import sb3_wng  # noqa: F401 - registers the regulator
from sb3_wng.envs.linear_quadratic import CURVATURE, GAIN, LinearQuadraticEnv, P, Q, R


def test_the_regulator_is_a_gymnasium_environment_of_eight_steps():
    env = gym.make("LinearQuadratic-v0")
    check_env(env.unwrapped, skip_render_check=True)
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


def test_nothing_beats_the_regulators_optimum():
    env = LinearQuadraticEnv()
    env.reset(seed=0)
    assert all(np.linalg.eigvalsh(CURVATURE) > 0)
    assert env.step(-GAIN @ env._state)[1] == pytest.approx(0, abs=1e-12)
    assert env.step(-GAIN @ env._state + [0.1, 0])[1] < -1e-4
