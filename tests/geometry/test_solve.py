import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_wng.geometry import conjugate_gradient, damped_solve


def random_problem(r, p, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(r, p, generator=generator, dtype=dtype)
    grad = torch.randn(p, generator=generator, dtype=dtype)
    diagonal = torch.rand(p, generator=generator, dtype=dtype) + 0.1
    return factor, grad, diagonal


@pytest.mark.parametrize(("r", "p"), [(1, 1), (5, 40), (40, 5), (7, 7)])
@pytest.mark.parametrize("damping", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("with_diagonal", [False, True])
def test_damped_solve_equals_the_dense_solve(r, p, damping, with_diagonal):
    factor, grad, diagonal = random_problem(r, p)
    diagonal = diagonal if with_diagonal else None
    dense = factor.T @ factor + damping * torch.diag(torch.ones_like(grad) if diagonal is None else diagonal)
    expected = torch.linalg.solve(dense, grad)
    torch.testing.assert_close(damped_solve(factor, grad, damping, diagonal), expected, rtol=1e-9, atol=1e-9)


def test_damped_solve_is_exact_for_a_rank_deficient_factor():
    factor, grad, _ = random_problem(3, 20)
    factor = torch.cat([factor, factor, 0 * factor])
    expected = torch.linalg.solve(factor.T @ factor + 0.1 * torch.eye(20, dtype=torch.float64), grad)
    torch.testing.assert_close(damped_solve(factor, grad, 0.1), expected, rtol=1e-9, atol=1e-9)


def test_damped_solve_keeps_float32_accuracy_where_a_float32_gram_matrix_would_not():
    factor, grad, _ = random_problem(4, 50, dtype=torch.float32)
    factor[0] *= 1e3
    exact = torch.linalg.solve(factor.double().T @ factor.double() + 1e-2 * torch.eye(50, dtype=torch.float64), grad.double())
    torch.testing.assert_close(
        damped_solve(factor, grad, 1e-2).double(), exact, rtol=1e-3, atol=1e-3 * exact.abs().max().item()
    )


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan")])
def test_damped_solve_refuses_a_damping_that_has_no_inverse(damping):
    factor, grad, _ = random_problem(2, 3)
    with pytest.raises(ValueError, match="damping must be > 0"):
        damped_solve(factor, grad, damping)


def test_damped_solve_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"factor must be \(r, p\)"):
        damped_solve(torch.zeros(2, 3), torch.zeros(4), 1.0)


@settings(max_examples=50, deadline=None)
@given(
    r=st.integers(1, 12),
    p=st.integers(1, 12),
    rank=st.integers(0, 12),
    log_scale=st.floats(-12, 12),
    log_damping=st.floats(-8, 8),
    seed=st.integers(0, 2**31 - 1),
)
def test_damped_solve_is_finite_and_ascends_at_any_scale_and_rank(r, p, rank, log_scale, log_damping, seed):
    factor, grad, _ = random_problem(r, p, seed)
    factor[rank:] = 0
    damping = 10.0 ** (2 * log_scale + log_damping)
    solution = damped_solve(factor * 10.0**log_scale, grad, damping)
    assert torch.isfinite(solution).all()
    assert solution @ grad > 0


def test_conjugate_gradient_equals_the_dense_solve():
    factor, b, _ = random_problem(30, 20)
    matrix = factor.T @ factor + torch.eye(20, dtype=torch.float64)
    solution = conjugate_gradient(lambda v: matrix @ v, b, max_steps=100, tolerance=1e-13)
    torch.testing.assert_close(solution.x, torch.linalg.solve(matrix, b), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(solution.residual, b - matrix @ solution.x, rtol=0, atol=1e-9)


def test_conjugate_gradient_needs_as_many_products_as_there_are_distinct_eigenvalues():
    b = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eigenvalues = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).repeat(17)[:50]
    assert conjugate_gradient(lambda v: eigenvalues * v, b, max_steps=50, tolerance=1e-10).n_iterations == 3


def test_conjugate_gradient_is_a_function_of_its_inputs():
    factor, b, _ = random_problem(9, 9)
    first, second = (conjugate_gradient(lambda v: factor.T @ (factor @ v), b, max_steps=4).x for _ in range(2))
    assert torch.equal(first, second)


def test_conjugate_gradient_stops_at_the_relative_residual_whatever_the_scale():
    factor, b, _ = random_problem(30, 20)
    matrix = factor.T @ factor + torch.eye(20, dtype=torch.float64)
    counts = {conjugate_gradient(lambda v: matrix @ v, scale * b, 100, 1e-3).n_iterations for scale in (1e-20, 1.0, 1e20)}
    assert len(counts) == 1
    solution = conjugate_gradient(lambda v: matrix @ v, b, 100, 1e-3)
    assert solution.residual.norm() <= 1e-3 * b.norm()


def test_every_iterate_of_conjugate_gradient_ascends():
    factor, b, _ = random_problem(20, 40)
    for steps in range(1, 10):
        assert conjugate_gradient(lambda v: factor.T @ (factor @ v) + 1e-6 * v, b, steps).x @ b > 0


@pytest.mark.parametrize("matrix", [torch.zeros(3, 3), -torch.eye(3)])
def test_conjugate_gradient_stops_where_there_is_no_curvature(matrix):
    solution = conjugate_gradient(lambda v: matrix @ v, torch.ones(3))
    assert solution.n_iterations == 0
    assert torch.equal(solution.x, torch.zeros(3))


def test_conjugate_gradient_of_zero_is_zero():
    assert torch.equal(conjugate_gradient(lambda v: v, torch.zeros(3)).x, torch.zeros(3))
