"""Gradients of expectations from antithetic pairs of perturbed parameters."""

import math

import pytest
import torch

from sb3_wng.geometry import BehaviorSample, Perturbation, wasserstein_factor


def test_jacobian_is_exact_in_expectation_for_linear_functions():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(3, 4, generator=generator)  # h(theta) = matrix theta, and X = theta
    noise = torch.randn(200_000, 4, generator=generator)
    plus, minus = (0.3 * noise) @ matrix.T, (-0.3 * noise) @ matrix.T
    values = torch.stack([plus, minus], dim=1).flatten(end_dim=1).T
    torch.testing.assert_close(Perturbation(noise, 0.3)(values), matrix, atol=0.02, rtol=0)


def test_jacobian_is_that_of_the_smoothed_expectation():
    # E sin(theta + sigma eps) = sin(theta) exp(-sigma^2 / 2)
    generator = torch.Generator().manual_seed(1)
    theta, sigma = 0.4, 0.5
    noise = torch.randn(400_000, 1, generator=generator, dtype=torch.float64)
    values = torch.cat([torch.sin(theta + sigma * noise), torch.sin(theta - sigma * noise)], dim=1).reshape(1, -1)
    expected = math.cos(theta) * math.exp(-(sigma**2) / 2)
    assert Perturbation(noise, sigma)(values).item() == pytest.approx(expected, abs=5e-3)


def test_several_samples_per_candidate_count_by_their_mean():
    noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    values = torch.randn(2, 5, 2, 4, generator=torch.Generator().manual_seed(3))
    repeated = Perturbation(noise, 0.1)(values.flatten(start_dim=1))
    torch.testing.assert_close(repeated, Perturbation(noise, 0.1)(values.mean(dim=3).flatten(start_dim=1)))


def test_kernel_factor_of_pairs_approaches_the_metric_of_a_translated_law():
    # X = theta + Z in two dimensions: the metric is the identity
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(20_000, 2, generator=generator)
    z = torch.randn(20_000, 1, 2, generator=generator)
    x = (torch.stack([0.1 * noise, -0.1 * noise], dim=1) + z).flatten(end_dim=1)
    factor = wasserstein_factor(BehaviorSample(x, Perturbation(noise, 0.1)), 8, 1.0, generator)
    torch.testing.assert_close(factor.T @ factor, torch.eye(2), atol=0.1, rtol=0)


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="delta_std must be > 0"):
        Perturbation(torch.zeros(2, 3), 0.0)
    with pytest.raises(ValueError, match="multiple of 4 samples, got 6"):
        Perturbation(torch.zeros(2, 3), 0.1)(torch.zeros(1, 6))
