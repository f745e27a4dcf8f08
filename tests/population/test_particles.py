"""What each particle learns from: its own share, in whole and in pieces, and nothing that is no number."""

import numpy as np
import pytest
import torch

from sb3_wng.algorithms.rollouts import flat_rewards
from sb3_wng.population import particles


def test_behaviour_is_paid_the_environments_rewards_at_time_limits(small, fill):
    model = small("a2c")
    for particle in model.policy:
        torch.nn.init.constant_(particle.value_net.bias, 5.0)
    fill(model)
    assert model.rollout_buffer.rewards.max() > 0  # values are in these
    for particle, share in zip(model.particles, model.shares(), strict=True):
        particle.begin(share, 1.0, in_order=True)
        assert flat_rewards(particle.learner).max() <= 0


def test_every_environment_has_its_own_exploration_matrix(small):
    model = small("pg", use_sde=True)
    model.policy.reset_noise(model.n_envs)
    for particle in model.policy:
        assert len(particle.action_dist.exploration_matrices) == 2


@pytest.mark.parametrize("is_truncated", [False, True])
def test_an_episode_that_ends_with_the_rollout_is_not_bootstrapped(small, fill, chase, is_truncated):
    model = fill(small("a2c", lambda: chase(episode_length=8, is_truncated=is_truncated)))
    buffer = model.rollout_buffer
    np.testing.assert_allclose(buffer.advantages[-1], buffer.rewards[-1] - buffer.values[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("broken", "at"), [("rewards", 5), ("observations", 5), ("observations", 16)])
@pytest.mark.parametrize("name", ["pg", "a2c", "wnpg"])
def test_numbers_that_are_not_finite_are_refused_before_anything_is_learnt(small, breaking, name, broken, at):
    model = small(name, lambda: breaking(broken, at))
    theta = model.policy.theta.clone()
    with pytest.raises(ValueError, match=rf"env\b.*\b{broken}"):
        model.learn(16 * 6)
    assert torch.equal(model.policy.theta, theta)
    assert model._n_updates == 0


def test_a_line_search_asks_for_gains_with_raw_advantages_too(small, fill):
    model = fill(small("wnpg", n_particles=1, n_steps=64, normalize_advantage=False))
    model.rollout_buffer.advantages += 3.0
    particle = model.particles[0]
    particle.begin(model.shares()[0], 1.0)
    report = particle.natural_step(0.1 * particle.gradient(), 0.1)
    assert report.accepted
    assert report.reduction_ratio == pytest.approx(1, abs=0.3)


def test_baselines_are_fitted_to_returns_and_not_to_what_is_left_of_them(small, fill):
    model = small("pg_linear", n_particles=1)
    for _ in range(2):
        fill(model)
        particle = model.particles[0]
        particle.begin(model.shares()[0], 1.0, in_order=True)
        particle.update_critic()
    expected = particle.baseline.weights.clone()
    particle.baseline.fit(particle.features, torch.as_tensor(model.rollout_buffer.returns).flatten())
    assert torch.equal(particle.baseline.weights, expected)


def test_pieces_add_up_to_the_whole(small, fill, gradients, monkeypatch):
    model = fill(small("pg"))
    whole = gradients(model)
    monkeypatch.setattr(particles, "CHUNK", 5)
    torch.testing.assert_close(gradients(model), whole, rtol=1e-4, atol=1e-6)


def test_with_the_behaviour_kernel_no_gradient_is_shared_and_no_parameter_repelled(small, fill, gradients):
    model = fill(small("pg", kernel="behavior", behavior_coef=0.0, temperature=4.0, embedding_horizon=5))
    expected, taken = gradients(model) / 4, []
    model._adam_step = taken.append
    model.train()
    torch.testing.assert_close(taken[0], expected, rtol=1e-4, atol=1e-6)
