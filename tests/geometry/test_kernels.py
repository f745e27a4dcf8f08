import pytest
import torch

from sb3_wng.geometry import GaussianKernel, random_points, stratified_coordinates


@pytest.fixture
def clouds():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    return x, y, torch.tensor([0, 2, 1, 2])


def test_kernel_is_the_textbook_gaussian(clouds):
    x, y, _ = clouds
    expected = torch.exp(-((y[:, None] - x[None]) ** 2).sum(-1) / (2 * 0.7))
    torch.testing.assert_close(GaussianKernel(0.7)(y, x), expected)


def test_basis_is_the_kernels_derivative_in_its_first_argument(clouds):
    x, y, coordinates = clouds
    kernel = GaussianKernel(0.7)
    points = y.clone().requires_grad_()
    gradient = torch.stack([torch.autograd.grad(column.sum(), points, retain_graph=True)[0] for column in kernel(points, x).T])
    expected = gradient[:, torch.arange(4), coordinates].T
    torch.testing.assert_close(kernel.basis(x, y, coordinates), expected, rtol=1e-9, atol=1e-9)


def test_basis_gradient_is_the_mixed_derivative(clouds):
    x, y, coordinates = clouds
    kernel = GaussianKernel(0.7)
    samples = x.clone().requires_grad_()
    rows = kernel.basis(samples, y, coordinates)
    expected = torch.stack([torch.autograd.grad(row.sum(), samples, retain_graph=True)[0] for row in rows])
    torch.testing.assert_close(kernel.basis_gradient(x, y, coordinates), expected, rtol=1e-9, atol=1e-9)


def test_bandwidth_follows_the_samples_scale(clouds):
    x, y, _ = clouds
    near, far = GaussianKernel.from_samples(y, x), GaussianKernel.from_samples(10 * y, 10 * x, log_bandwidth=1.0)
    assert far.bandwidth == pytest.approx(1000 * near.bandwidth)


def test_coinciding_samples_still_have_a_bandwidth():
    assert GaussianKernel.from_samples(torch.ones(2, 3), torch.ones(5, 3)).bandwidth == 1.0


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, float("nan")])
def test_bandwidth_must_be_positive(bandwidth):
    with pytest.raises(ValueError, match="bandwidth must be > 0"):
        GaussianKernel(bandwidth)


@pytest.mark.parametrize(("n_basis", "dim"), [(9, 3), (30, 6), (2, 5), (7, 1)])
def test_stratified_coordinates_use_every_dimension_equally_often(n_basis, dim):
    counts = stratified_coordinates(n_basis, dim, torch.Generator().manual_seed(1)).bincount(minlength=dim)
    assert counts.sum() == n_basis
    assert counts.max() - counts.min() <= 1


def test_points_and_coordinates_are_functions_of_the_generator():
    draws = [random_points(torch.zeros(50, 2), 20, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)
    assert len(draws[0].unique()) == 20


def test_rounding_is_not_taken_for_a_scale():
    samples = torch.full((5, 3), 0.1, dtype=torch.float64)
    samples[0] += 1.6e-16
    assert GaussianKernel.from_samples(samples[:2], samples, 1.0).bandwidth == 10.0
