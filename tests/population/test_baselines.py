"""REINFORCE's linear baseline: what it predicts, and that it changes the variance of the gradient and not its mean."""

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_wng import SVPG
from sb3_wng.population import LinearBaseline
from sb3_wng.population.baselines import steps_since_start


def filled_buffer(rng, n_steps=60, n_envs=4, episode_length=20):
    """Random observations in one or two episodes per environment."""
    space = spaces.Box(-1, 1, (2,))
    buffer = RolloutBuffer(n_steps, space, spaces.Box(-1, 1, (1,)), gae_lambda=1.0, n_envs=n_envs)
    for step in range(n_steps):
        starts = np.full(n_envs, step % episode_length == 0)
        observations = rng.uniform(-1, 1, (n_envs, 2))
        buffer.add(observations, np.zeros((n_envs, 1)), np.zeros(n_envs), starts, torch.zeros(n_envs), torch.zeros(n_envs))
    return buffer


def test_steps_count_from_the_start_of_an_episode_or_of_the_rollout():
    starts = np.array([[1, 0], [0, 0], [0, 1], [1, 0]])
    np.testing.assert_array_equal(steps_since_start(starts), [[0, 0], [1, 1], [2, 0], [0, 1]])


def test_returns_that_are_linear_in_the_features_are_found():
    buffer = filled_buffer(np.random.default_rng(0))
    baseline = LinearBaseline(buffer.observation_space)
    features = baseline.features(buffer)
    assert torch.equal(baseline(features), torch.zeros(240, dtype=torch.float64))
    x, time = buffer.observations, steps_since_start(buffer.episode_starts)
    returns = 3 * x[..., 0] - 2 * x[..., 1] ** 2 + 0.5 * time + 1e-4 * time**3 + 7
    baseline.fit(features, torch.as_tensor(returns).flatten())
    np.testing.assert_allclose(baseline(features).reshape(60, 4), returns, atol=0.03)
    again = filled_buffer(np.random.default_rng(1))
    x = again.observations
    expected = 3 * x[..., 0] - 2 * x[..., 1] ** 2 + 0.5 * time + 1e-4 * time**3 + 7
    np.testing.assert_allclose(baseline(baseline.features(again)).reshape(60, 4), expected, atol=0.03)


def test_advantages_are_returns_less_what_earlier_rollouts_predict(small, fill):
    model = fill(small("pg_linear", normalize_advantage=False))
    raw = model.rollout_buffer.advantages.copy()
    share = model.shares()[1]
    model.particles[1].begin(share, 1.0, in_order=True)
    np.testing.assert_array_equal(model.particles[1].advantages, raw[:, 2:4].T.ravel())  # nothing is predicted yet
    model.particles[1].update_critic()
    assert not model.particles[0].baseline.weights.any()
    fill(model)
    returns = model.rollout_buffer.returns[:, 2:4].copy()
    share = model.shares()[1]
    baseline = model.particles[1].baseline
    predicted = baseline(baseline.features(share)).reshape(returns.shape).numpy()
    model.particles[1].begin(share, 1.0, in_order=True)
    np.testing.assert_allclose(model.particles[1].advantages, (returns - predicted).T.ravel(), rtol=1e-5)
    np.testing.assert_array_equal(model.rollout_buffer.returns[:, 2:4], returns)
    assert np.var(returns - predicted) < np.var(returns)


def test_the_gradient_keeps_its_mean_and_loses_variance(small, fill, gradients):
    """Of two copies of a population that does not move, one has a baseline; same rollouts, many times."""
    model = small("pg_linear", normalize_advantage=False, n_particles=1, n_steps=200)
    baseline = model.particles[0].baseline
    with_baseline, without = [], []
    for _ in range(60):
        fill(model)
        with_baseline.append(gradients(model)[0])
        fitted = copy.deepcopy(baseline.state_dict())
        baseline.weights.zero_()
        without.append(gradients(model)[0])
        baseline.load_state_dict(fitted)
        model.particles[0].update_critic()
    one, other = torch.stack(with_baseline[1:]), torch.stack(without[1:])
    assert one.var(dim=0).sum() < 0.7 * other.var(dim=0).sum()
    difference = one - other
    error = difference.std(dim=0) / len(difference) ** 0.5
    is_moved = error > 1e-8
    assert (difference.mean(dim=0)[is_moved].abs() < 5 * error[is_moved]).all()


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(4),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(3),
        spaces.Box(-1, 1, (2, 2)),
        spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(3)}),
    ],
    ids=["Discrete", "MultiDiscrete", "MultiBinary", "Box", "Dict"],
)
def test_every_observation_of_numbers_has_features(small, chase, space):
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    model = small("pg_linear", lambda: chase(observation_space=space), policy).learn(96)
    weights = torch.stack([particle.baseline.weights for particle in model.particles])
    assert weights.shape == (3, 2 * spaces.flatdim(space) + 4)
    assert torch.isfinite(weights).all()
    assert weights.any(dim=1).all()


def test_images_are_refused(small, chase):
    image = spaces.Box(0, 255, (36, 36, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"pg_linear.*not on images; 'a2c' has a critic"):
        small("pg_linear", lambda: chase(observation_space=image), "CnnPolicy")
    both = spaces.Dict({"image": image, "vector": spaces.Box(-1, 1, (2,))})
    with pytest.raises(ValueError, match="not on images"):
        small("pg_linear", lambda: chase(observation_space=both), "MultiInputPolicy")


def test_baselines_are_saved_and_copied_by_selection(small, tmp_path):
    model = small("pg_linear", n_particles=4).learn(2 * 16 * 8)
    model.save(tmp_path / "model")
    loaded = SVPG.load(tmp_path / "model", device="cpu")
    for mine, theirs in zip(loaded.particles, model.particles, strict=True):
        assert theirs.baseline.weights.any()
        assert torch.equal(mine.baseline.weights, theirs.baseline.weights)
    loaded.particles[0].become(loaded.particles[1])
    assert torch.equal(loaded.particles[0].baseline.weights, loaded.particles[1].baseline.weights)
