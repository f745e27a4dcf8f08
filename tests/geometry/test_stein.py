"""Stein's direction: against autograd, a dense reference, its symmetries, and the law that it should sample."""

import math

import pytest
import torch

from sb3_wng.geometry import (
    kernel_repulsion,
    median_bandwidth,
    particle_kernel,
    radial_push,
    squared_distances,
    svgd_direction,
)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def stein(particles, scores, bandwidth="authors"):
    distances = squared_distances(particles)
    h = median_bandwidth(distances, bandwidth)
    kernel = particle_kernel(distances, h)
    return svgd_direction(scores, kernel, kernel_repulsion(particles, kernel, h))


def dense_direction(particles, log_density, h):
    """Eq. 6 with two loops and gradients by autograd."""

    def kernel(x, y):
        return torch.exp(-(x - y).square().sum() / h)

    n, direction = len(particles), torch.zeros_like(particles)
    for i in range(n):
        for j in range(n):
            x = particles[j].clone().requires_grad_()
            (score,) = torch.autograd.grad(log_density(j, x), x)
            (repulsion,) = torch.autograd.grad(kernel(x, particles[i]), x)
            direction[i] += (kernel(particles[j], particles[i]) * score + repulsion) / n
    return direction


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_direction_equals_a_dense_reference_with_one_quadratic_return_per_particle(n):
    particles, targets, curvatures = normal(n, 3), normal(n, 3, seed=1), normal(n, 3, seed=2).exp()

    def log_density(j, x):
        return -(curvatures[j] * (x - targets[j]).square()).sum() / 2

    scores = -curvatures * (particles - targets)
    h = median_bandwidth(squared_distances(particles))
    torch.testing.assert_close(stein(particles, scores), dense_direction(particles, log_density, h))


def test_the_repulsion_is_the_gradient_of_the_kernel_and_points_away():
    particles = normal(6, 4)
    h = 3.0
    kernel = particle_kernel(squared_distances(particles), h)
    repulsion = kernel_repulsion(particles, kernel, h)
    others = particles.clone()
    x = particles.clone().requires_grad_()
    # sum over pairs of k(theta_j, theta_i), differentiated in theta_j, collected at i: minus the gradient in theta_i
    (gradient,) = torch.autograd.grad(torch.exp(-(x[:, None] - others[None]).square().sum(dim=2) / h).sum(), x)
    torch.testing.assert_close(repulsion, -gradient)
    two = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    push = kernel_repulsion(two, particle_kernel(squared_distances(two), 1.0), 1.0)
    assert push[0] < 0 < push[1]


def test_repulsions_of_a_symmetric_kernel_sum_to_zero():
    particles = normal(7, 5)
    kernel = particle_kernel(squared_distances(particles), 2.0)
    torch.testing.assert_close(kernel_repulsion(particles, kernel, 2.0).sum(dim=0), torch.zeros(5, dtype=torch.float64))


def test_squared_distances_of_close_particles_far_from_the_origin_keep_their_digits():
    particles = (1000 + 1e-2 * normal(5, 50)).float()
    exact = (particles.double()[:, None] - particles.double()[None]).square().sum(dim=2)
    torch.testing.assert_close(squared_distances(particles), exact, rtol=1e-3, atol=1e-9)
    assert (squared_distances(particles).diagonal() == 0).all()


def test_bandwidths_are_those_of_the_paper_and_of_its_code():
    particles = normal(16, 10_000)  # all distances nearly alike
    distances = squared_distances(particles)
    between = ~torch.eye(16, dtype=torch.bool)
    printed = particle_kernel(distances, median_bandwidth(distances, "printed"))[between]
    authors = particle_kernel(distances, median_bandwidth(distances, "authors"))[between]
    torch.testing.assert_close(printed.mean().item(), 1 / 17, rtol=0.05, atol=0)
    torch.testing.assert_close(authors.mean().item(), 1 / 17**2, rtol=0.1, atol=0)
    three = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    assert median_bandwidth(squared_distances(three), "printed") == pytest.approx(2.0**2 / math.log(4))
    # squared distances 0 0 0 1 1 4 4 9 9: the median is 1
    assert median_bandwidth(squared_distances(three), "authors") == pytest.approx(1 / (2 * math.log(4)))


@pytest.mark.parametrize("rule", ["authors", "printed"])
@pytest.mark.parametrize("n", [1, 4])
def test_coinciding_particles_have_a_bandwidth_and_no_repulsion(rule, n):
    particles = torch.ones(n, 3)
    distances = squared_distances(particles)
    h = median_bandwidth(distances, rule)
    assert h == 1
    kernel = particle_kernel(distances, h)
    torch.testing.assert_close(kernel_repulsion(particles, kernel, h), torch.zeros(n, 3))


@pytest.mark.parametrize("bandwidth", ["median", 0.0, -1.0, math.nan, math.inf])
def test_bandwidths_that_are_none_are_refused(bandwidth):
    with pytest.raises(ValueError, match="bandwidth must be"):
        median_bandwidth(squared_distances(normal(3, 2)), bandwidth)


def test_a_single_particle_follows_its_own_score():
    particles, scores = normal(1, 5), normal(1, 5, seed=1)
    torch.testing.assert_close(stein(particles, scores), scores)
    torch.testing.assert_close(radial_push(particles), torch.zeros_like(particles))


def test_the_order_of_the_particles_does_not_matter():
    particles, scores = normal(6, 4), normal(6, 4, seed=1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(stein(particles[order], scores[order]), stein(particles, scores)[order])


@pytest.mark.parametrize(("bandwidth", "tolerance"), [("authors", 0.25), ("printed", 0.15)])
def test_particles_converge_to_the_mean_and_variance_of_a_gaussian(bandwidth, tolerance):
    mean, variance = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.25])
    particles = 0.1 * normal(60, 2, dtype=torch.float32)
    optimizer = torch.optim.Adam([particles], lr=0.1)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 400)
        particles.grad = -stein(particles, -(particles - mean) / variance, bandwidth)
        optimizer.step()
    torch.testing.assert_close(particles.mean(dim=0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(particles.var(dim=0), variance, rtol=tolerance, atol=0)  # a narrow kernel errs more


@pytest.mark.parametrize("bandwidth", ["authors", "printed"])
def test_the_radial_push_is_the_repulsion_among_many_independent_particles(bandwidth):
    particles = normal(16, 50_000)
    distances = squared_distances(particles)
    h = median_bandwidth(distances, bandwidth)
    repulsion = kernel_repulsion(particles, particle_kernel(distances, h), h)
    push = radial_push(particles, bandwidth)
    # theta - mean theta is shorter than theta by the factor sqrt(15/16), and points elsewhere by as much
    cosine = torch.nn.functional.cosine_similarity(repulsion, push)
    torch.testing.assert_close(cosine, torch.full((16,), math.sqrt(15 / 16), dtype=torch.float64), rtol=0.01, atol=0)
    torch.testing.assert_close(repulsion.norm(), push.norm() * math.sqrt(15 / 16), rtol=0.1, atol=0)


def test_a_particles_radial_push_ignores_the_others():
    particles = normal(4, 6)
    moved = torch.cat([particles[:1], 5 * normal(3, 6, seed=1)])
    torch.testing.assert_close(radial_push(moved)[0], radial_push(particles)[0])


def test_the_printed_bandwidth_squares_the_median():
    particles = torch.tensor([[0.0], [1.0], [3.0], [7.0]], dtype=torch.float64)  # distances 1, 2, 3, 4, 6, 7
    assert median_bandwidth(squared_distances(particles), "printed") == pytest.approx(3.5**2 / math.log(5))


def test_the_radial_push_of_two_particles_counts_their_distances_to_themselves():
    particles = normal(2, 3)
    norms = particles.square().sum(dim=1)
    h = norms / (2 * math.log(3))  # of 0, d, d, 0 with d = 2 |x|^2 the median is d / 2
    torch.testing.assert_close(radial_push(particles), particles * (4 / h * (-2 * norms / h).exp())[:, None])


def test_distances_of_near_particles_are_never_negative():
    for seed in range(10):
        particles = normal(3, 50, seed=seed)
        near = torch.cat([particles, particles + 1e-9 * normal(3, 50, seed=seed + 99)])
        assert (squared_distances(near) >= 0).all()
