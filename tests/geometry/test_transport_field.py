import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_wng.geometry import BehaviorSample, Pathwise, ScoreFunction, transport_field, wasserstein_factor

D = 2
ENOUGH = D + D * (D + 1) // 2  # basis functions for every affine field


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(n=2000, std=0.5, seed=0):
    """N(mean, std^2 I) in the plane with parameters (mean, log_std), pathwise."""
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    log_std = torch.full((D,), math.log(std), dtype=torch.float64, requires_grad=True)
    x = mean + log_std.exp() * torch.randn(n, D, generator=generator(seed), dtype=torch.float64)
    return BehaviorSample(x, Pathwise(x, [mean, log_std])), mean.detach(), log_std.detach()


def points_around(mean, m=30, seed=1):
    return mean + 0.5 * torch.randn(m, D, generator=generator(seed), dtype=torch.float64)


def field(sample, direction, points, n_basis=ENOUGH, log_bandwidth=3.0, seed=2):
    return transport_field(sample, torch.as_tensor(direction).double(), points, n_basis, log_bandwidth, generator(seed))


def test_a_shift_of_the_mean_moves_every_point_by_the_shift():
    sample, mean, _ = gaussian()
    points = points_around(mean)
    velocities = field(sample, [0.3, -0.7, 0.0, 0.0], points)
    torch.testing.assert_close(velocities, torch.tensor([0.3, -0.7]).double().expand(30, 2), rtol=0, atol=5e-3)


def test_a_change_of_scale_moves_every_point_away_from_the_mean_in_proportion():
    sample, mean, _ = gaussian()
    points = points_around(mean)
    velocities = field(sample, [0.0, 0.0, 0.4, -0.2], points)
    expected = (points - mean) * torch.tensor([0.4, -0.2])
    torch.testing.assert_close(velocities, expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("n_basis", [3, ENOUGH, 40])
def test_its_mean_squared_length_is_that_of_the_metric(n_basis):
    """E|grad f_u|^2 = u^T G u, after eq. 7, exactly for the samples' own law and the same basis."""
    sample, *_ = gaussian(300)
    direction = torch.randn(4, generator=generator(3), dtype=torch.float64)
    velocities = field(sample, direction, sample.embeddings, n_basis)
    factor = wasserstein_factor(sample, n_basis, 3.0, generator(2))
    torch.testing.assert_close(velocities.square().sum(dim=1).mean(), (factor @ direction).square().sum(), rtol=1e-5, atol=0)


def test_points_that_follow_the_field_are_distributed_as_after_the_step():
    """The samples of a mixture, moved along the field, have the mean and variance that the moved law has."""
    step = 0.05

    def mixture(parameter):
        noise = 0.3 * torch.randn(4000, D, generator=generator(), dtype=torch.float64)
        sides = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64).repeat(2000, 1)
        return sides * (1 + parameter) + noise

    parameter = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    x = mixture(parameter)
    velocities = field(BehaviorSample(x, Pathwise(x, [parameter])), [1.0], x, n_basis=40, log_bandwidth=0.0)
    moved, expected = (x + step * velocities).detach(), mixture(torch.full((1,), step)).detach()
    torch.testing.assert_close(moved.mean(dim=0), expected.mean(dim=0), rtol=0, atol=2e-3)
    torch.testing.assert_close(moved.var(dim=0), expected.var(dim=0), rtol=2e-3, atol=0)


def test_scores_give_the_field_of_the_path_within_monte_carlo_error():
    sample, mean, log_std = gaussian(100_000)
    leaves = [mean.clone().requires_grad_(), log_std.clone().requires_grad_()]
    x = sample.embeddings.detach()
    log_probs = torch.distributions.Normal(leaves[0], leaves[1].exp()).log_prob(x).sum(dim=1)
    by_score = field(BehaviorSample(x, ScoreFunction(log_probs, leaves)), [0.3, -0.7, 0.4, 0.0], points_around(mean))
    torch.testing.assert_close(by_score, field(sample, [0.3, -0.7, 0.4, 0.0], points_around(mean)), rtol=0, atol=0.05)


@settings(max_examples=20, deadline=None)
@given(a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_it_is_linear_in_the_direction(a, b):
    sample, mean, _ = gaussian(50)
    points = points_around(mean, 5)
    u, v = torch.tensor([1.0, 0.0, 0.5, 0.0]), torch.tensor([0.0, -1.0, 0.0, 2.0])
    combined = field(sample, a * u + b * v, points)
    torch.testing.assert_close(combined, a * field(sample, u, points) + b * field(sample, v, points), rtol=1e-6, atol=1e-6)


def test_float32_networks_get_a_float64_field_and_leave_no_graph():
    sample, mean, _ = gaussian(100)
    leaf = mean.float().requires_grad_()
    x = leaf + (sample.embeddings.detach() - mean).float()
    velocities = field(BehaviorSample(x, Pathwise(x, [leaf])), [0.3, -0.7], points_around(mean))
    assert velocities.dtype == torch.float64
    assert not velocities.requires_grad
    torch.testing.assert_close(velocities, torch.tensor([0.3, -0.7]).double().expand(30, 2), rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": torch.zeros(3, 4)}, r"points must have shape \(m, 2\).*\(3, 4\)"),
        ({"points": torch.zeros(2)}, r"points must have shape \(m, 2\)"),
        ({"n_basis": 0}, r"n_basis must be >= 1"),
        ({"context": torch.zeros(10, 1)}, r"with a context"),
    ],
)
def test_what_has_no_field_is_refused(change, message):
    sample, mean, _ = gaussian(10)
    sample = sample._replace(context=change.get("context"))
    with pytest.raises(ValueError, match=message):
        field(sample, torch.zeros(4), change.get("points", points_around(mean)), change.get("n_basis", 3))
