import copy
import math
import warnings

import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_wng.geometry import DualPotentials, dual_potentials, sinkhorn_distance, sinkhorn_potential, total_variation
from sb3_wng.geometry.dual_potentials import _newton
from sb3_wng.geometry.transport import cost_matrix

COSTS = ["sqeuclidean", "euclidean"]
SHAPES = ["shift", "scale", "far", "near", "modes", "heavy"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    # Thousands of operations on tiny matrices: on a busy machine threads make them ten times slower
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def cloud(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clouds(shape, n=60, d=2):
    x, y = cloud(n, d, 0), cloud(n, d, 1)
    if shape == "shift":
        return x, y + 1
    if shape == "scale":
        return x, 0.5 * y
    if shape == "far":
        return x, y + 1000
    if shape == "near":
        return x, x + 0.05 * y
    if shape == "modes":
        offset = 4 * (torch.arange(n) % 2)[:, None]
        return 0.1 * x, 0.1 * y + offset
    return x * cloud(n, 1, 2).exp(), y * cloud(n, 1, 3).exp()


def costs(x, y, cost="sqeuclidean"):
    distances = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.square() if cost == "sqeuclidean" else distances


def exact_distance(x, y, cost="sqeuclidean"):
    return ot.emd2([], [], costs(x, y, cost).numpy())


def entropic_optimum(x, y, entropic_reg, cost="sqeuclidean"):
    """W_gamma with a relative entropy, and POT's potential of x in units of the cost.

    POT penalises sum P log P; relative to the product of uniform marginals that is gamma log(n m) more.
    ``ot.sinkhorn2`` returns only the linear part <P, c>, hence the sum.
    """
    c = costs(x, y, cost)
    reg = entropic_reg * c.mean().item()
    marginals = [torch.full((size,), 1 / size, dtype=torch.float64) for size in c.shape]
    plan, log = ot.sinkhorn(
        *marginals, c, reg, method="sinkhorn_log", numItermax=5000, stopThr=1e-7 / len(y) ** 0.5, log=True, warn=False
    )
    value = (plan * c).sum() + reg * (torch.special.xlogy(plan, plan).sum() + math.log(c.numel()))
    return value, reg * log["log_u"]


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.detach(), b.detach()]))[0, 1]


# Sinkhorn divergence


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize(("shape", "d"), [("shift", 2), ("scale", 2), ("far", 2), ("modes", 2), ("heavy", 2), ("shift", 17)])
def test_sinkhorn_is_close_to_the_exact_distance_at_small_regularisation(shape, d, cost):
    x, y = clouds(shape, d=d)
    value = sinkhorn_distance(x, y, entropic_reg=0.01, cost=cost, tolerance=2e-3)
    assert value.item() == pytest.approx(exact_distance(x, y, cost), rel=0.03)


@pytest.mark.parametrize("shape", ["shift", "modes", "heavy"])
def test_the_saturating_cost_is_a_bounded_metric_whose_distance_is_pots(shape):
    x, y = clouds(shape, d=2)
    cost = 1 - torch.exp(-torch.cdist(x.double(), y.double()))
    exact = ot.emd2([], [], cost.numpy())
    assert sinkhorn_distance(x, y, 0.01, "saturating", 5000, 2e-3).item() == pytest.approx(exact, rel=0.05, abs=0.005)
    own = cost_matrix(x, x, "saturating")
    assert own.max() < 1
    assert (own[:, None] <= own[:, :, None] + own[None] + 1e-6).all()


def test_sinkhorn_is_the_bures_distance_of_affinely_related_clouds():
    # The map x -> A x + b with a symmetric positive A is optimal, so that the formula for Gaussians holds for samples too
    x = cloud(200, 3)
    matrix = torch.tensor([[1.5, 0.3, 0.0], [0.3, 0.6, 0.1], [0.0, 0.1, 1.0]], dtype=torch.float64)
    y = x @ matrix + torch.tensor([1.0, 0.0, -0.5])
    expected = ot.gaussian.bures_wasserstein_distance(x.mean(0), y.mean(0), x.T.cov(correction=0), y.T.cov(correction=0)) ** 2
    assert exact_distance(x, y) == pytest.approx(expected.item(), rel=1e-9)
    assert sinkhorn_distance(x, y, entropic_reg=0.01, tolerance=1e-3).item() == pytest.approx(expected.item(), rel=0.02)
    assert sinkhorn_distance(x, y).item() == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize("entropic_reg", [0.1, 1.0])
@pytest.mark.parametrize("d", [1, 17])
def test_sinkhorn_of_a_translation_is_exact_at_any_regularisation(entropic_reg, d):
    x = cloud(40, d)
    value = sinkhorn_distance(x, x + 2.0, entropic_reg)
    assert value.item() == pytest.approx(4.0 * d, rel=1e-4)


def test_sinkhorn_is_the_debiased_combination_of_pots_entropic_distances():
    x, y = clouds("scale")
    c_xy = costs(x, y).mean()
    w_xy, w_xx, w_yy = (
        entropic_optimum(a, b, (0.1 * c_xy / costs(a, b).mean()).item())[0] for a, b in ((x, y), (x, x), (y, y))
    )
    torch.testing.assert_close(sinkhorn_distance(x, y, 0.1), w_xy - 0.5 * (w_xx + w_yy), rtol=1e-5, atol=0)


def test_sinkhorn_sees_the_laws_rather_than_the_samples_noise():
    # Two samples of one law: the exact distance between them is all noise
    x, y = cloud(64, 17, 0), cloud(64, 17, 1) + 1
    assert exact_distance(x, y) > 1.8 * 17
    assert sinkhorn_distance(x, y).item() == pytest.approx(17, rel=0.25)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("entropic_reg", [0.05, 0.5])
def test_sinkhorns_gradient_is_that_of_its_value(entropic_reg, cost):
    x, y = cloud(6, 2).requires_grad_(), (1.5 * cloud(4, 2, 1) + 0.5).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: sinkhorn_distance(a, b, entropic_reg, cost, max_steps=20_000, tolerance=1e-10), (x, y), atol=1e-6
    )


@pytest.mark.parametrize("d", [1, 17])
@pytest.mark.parametrize("entropic_reg", [0.02, 0.2])
@pytest.mark.parametrize("cost", COSTS)
def test_coinciding_clouds_have_no_distance_and_no_gradient(cost, entropic_reg, d):
    x = cloud(50, d).requires_grad_()
    y = x.detach()[torch.randperm(50, generator=torch.Generator().manual_seed(0))]
    value = sinkhorn_distance(x, y, entropic_reg, cost)
    (gradient,) = torch.autograd.grad(value, x)
    assert value.item() == pytest.approx(0, abs=1e-7)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-6)


def test_sinkhorn_descends_to_the_target():
    x, y = clouds("scale")
    x = x.clone().requires_grad_()
    start = sinkhorn_distance(x, y).item()
    for _ in range(20):
        (gradient,) = torch.autograd.grad(sinkhorn_distance(x, y), x)
        x = (x - 0.3 * len(x) * gradient).detach().requires_grad_()
    assert sinkhorn_distance(x, y).item() < 0.02 * start


@pytest.mark.parametrize("power", [-8, 1, 8])
def test_sinkhorn_does_not_depend_on_units_and_origin(power):
    x, y = clouds("shift", d=3)
    scale = 10.0**power
    torch.testing.assert_close(sinkhorn_distance(scale * x, scale * y), scale**2 * sinkhorn_distance(x, y), rtol=1e-6, atol=0)
    torch.testing.assert_close(sinkhorn_distance(x + 100, y + 100), sinkhorn_distance(x, y), rtol=1e-6, atol=0)


def test_sinkhorn_is_symmetric():
    x, y = clouds("modes")
    torch.testing.assert_close(sinkhorn_distance(x, y[:40]), sinkhorn_distance(y[:40], x), rtol=1e-5, atol=0)


@pytest.mark.parametrize("cost", COSTS)
def test_distances_of_single_points_are_their_costs(cost):
    x, y = torch.zeros(1, 3), torch.full((1, 3), 2.0)
    expected = costs(x, y, cost).squeeze()
    torch.testing.assert_close(sinkhorn_distance(x, y, cost=cost), expected)
    fit = DualPotentials(3, cost=cost).fit(x, y)
    assert fit.converged
    torch.testing.assert_close(fit.value, expected.double(), rtol=1e-3, atol=0)


def test_sinkhorn_keeps_dtype_and_works_in_float64_inside():
    x, y = clouds("shift")
    value = sinkhorn_distance((x + 1000).float(), (y + 1000).float())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(sinkhorn_distance(x, y).item(), rel=1e-3)


def test_too_few_steps_are_reported():
    x, y = clouds("shift")
    with pytest.warns(UserWarning, match="tolerance=1e-06 in max_steps=3"):
        sinkhorn_distance(x, y, 0.01, max_steps=3, tolerance=1e-6)


# Dual potentials


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("d", [2, 17])
@pytest.mark.parametrize("shape", SHAPES)
def test_dual_value_is_just_below_the_entropic_optimum(shape, d, cost):
    x, y = clouds(shape, d=d)
    optimum, _ = entropic_optimum(x, y, 0.05, cost)
    fit = DualPotentials(d, cost=cost).fit(x, y)
    assert fit.converged
    assert fit.value <= optimum * (1 + 1e-6)
    assert fit.value >= optimum * (0.96 if shape == "heavy" else 0.98)


def test_a_fit_is_worth_more_than_gradient_steps_from_zero():
    x, y = clouds("shift")
    duals = DualPotentials(2)
    fit = duals.fit(x, y)
    zx, zy = duals._features(x), duals._features(y)
    c, reg = costs(x, y) / duals.cost_scale, duals.entropic_reg
    b = torch.zeros(2, zx.shape[1], dtype=torch.float64)
    for _ in range(25):
        excess = torch.exp(((zx @ b[0])[:, None] + zy @ b[1] - c) / reg)
        b[0] += 0.05 * (zx.mean(0) - (excess.mean(1) @ zx) / len(x))
        b[1] += 0.05 * (zy.mean(0) - (excess.mean(0) @ zy) / len(y))
    u, v = zx @ b[0], zy @ b[1]
    plain = (u.mean() + v.mean() - reg * torch.exp((u[:, None] + v - c) / reg).mean() + reg) * duals.cost_scale
    assert plain < 0.75 * fit.value


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize(("shape", "d"), [("shift", 2), ("scale", 2), ("modes", 2), ("shift", 6), ("shift", 17)])
def test_potential_is_sinkhorns(shape, d, cost):
    x, y = clouds(shape, n=200, d=d)
    _, potential = entropic_optimum(x, y, 0.05, cost)
    duals = DualPotentials(d, n_features=200, cost=cost)
    duals.fit(x, y)
    assert correlation(duals(x), potential) >= 0.95


def test_potential_of_a_translation_is_linear_also_where_no_sample_is():
    # |x - (x + a)|^2 is transported by the potential -2 a.x
    x = cloud(200, 3)
    shift = torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64)
    duals = DualPotentials(3)
    duals.fit(x, x + shift)
    fresh = cloud(500, 3, 5)
    assert correlation(duals(fresh), -2 * fresh @ shift) >= 0.98


def test_debiased_potential_is_nearer_to_the_laws_than_the_biased_one():
    x, y, fresh = cloud(256, 6, 0), cloud(256, 6, 1) + 1, cloud(1000, 6, 2)
    cross, own = DualPotentials(6, entropic_reg=0.2), DualPotentials(6, entropic_reg=0.2)
    cross.fit(x, y)
    own.fit(x, x, cross.gamma)
    true = -2 * fresh.sum(dim=1)
    assert correlation(cross(fresh), true) < 0.95 < 0.97 < correlation(cross(fresh) - own(fresh), true)


def test_offsets_make_the_fitted_potentials_feasible_and_equally_high():
    x, y = clouds("scale")
    duals = DualPotentials(2)
    fit = duals.fit(x, y)
    u, v = duals(x), duals._potential(y, 1) * duals.cost_scale
    reg = duals.entropic_reg * duals.cost_scale
    assert torch.exp((u[:, None] + v - costs(x, y)) / reg).mean().item() == pytest.approx(1)
    torch.testing.assert_close(u.mean(), v.mean())
    torch.testing.assert_close(u.mean() + v.mean(), fit.value)


def test_warm_start_takes_fewer_steps_to_the_same_solution():
    x, y = clouds("shift", n=200)
    duals = DualPotentials(2)
    cold = duals.fit(x, y)
    assert duals.fit(x, y).n_steps == 0
    moved = x + 0.02 * cloud(200, 2, 7)
    warm = duals.fit(moved, y)
    fresh = DualPotentials(2).fit(moved, y)
    assert warm.n_steps < min(cold.n_steps, fresh.n_steps)
    torch.testing.assert_close(warm.value, fresh.value, rtol=1e-3, atol=0)


def test_a_warm_start_survives_a_change_of_units_and_a_change_of_everything():
    x, y = clouds("scale", n=100)
    duals = DualPotentials(2)
    first = duals.fit(x, y)
    moved = duals.fit(10 * x - 300, 10 * y - 300)
    assert moved.n_steps == 0
    torch.testing.assert_close(moved.value, 100 * first.value, rtol=1e-9, atol=0)
    other_x, other_y = clouds("heavy", n=100)
    changed = duals.fit(other_x, -5 * other_y)
    assert changed.converged
    torch.testing.assert_close(changed.value, DualPotentials(2).fit(other_x, -5 * other_y).value, rtol=1e-3, atol=0)


def test_the_solver_finds_the_stationary_point():
    x, y = clouds("shift", n=30)
    duals = DualPotentials(2, n_features=10, tolerance=1e-14)
    problems = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sb3_wng.geometry.dual_potentials._newton",
            lambda problem, *rest: (problems.append(problem), _newton(problem, *rest))[1],
        )
        duals.fit(x, y)
    (problem,) = problems
    b = duals.coefficients.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.objective(b)[0], b)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-6)
    hessian = torch.autograd.functional.hessian(lambda b: problem.objective(b)[0], b).reshape(24, 24)
    ours, curvature = problem.derivatives(b.detach(), problem.objective(b.detach())[1])
    torch.testing.assert_close(ours, gradient.flatten(), rtol=0, atol=1e-10)
    torch.testing.assert_close(curvature, -hessian, rtol=1e-9, atol=1e-9)


def test_value_on_unseen_samples_is_a_lower_bound_too():
    x, y = clouds("heavy", n=128)
    duals = DualPotentials(2)
    duals.fit(x[:64], y[:64])
    reg = (duals.entropic_reg * duals.cost_scale / costs(x[64:], y[64:]).mean()).item()
    value = duals.value(x[64:], y[64:])
    assert torch.isfinite(value)
    assert value <= entropic_optimum(x[64:], y[64:], reg)[0]


def test_value_repeats_the_fits_and_both_outputs_are_differentiable():
    x, y = clouds("shift", n=8)
    duals = DualPotentials(2, n_features=12)
    fit = duals.fit(x, y)
    torch.testing.assert_close(duals.value(x, y), fit.value)
    x.requires_grad_()
    y.requires_grad_()
    assert torch.autograd.gradcheck(duals, x)
    assert torch.autograd.gradcheck(duals.value, (x, y))
    assert duals(x.float()).dtype == duals.value(x.float(), y.float()).dtype == torch.float32


def test_values_gradient_pulls_every_sample_along_the_transport():
    x, y = clouds("shift", n=200)
    duals = DualPotentials(2)
    duals.fit(x, y)
    x.requires_grad_()
    (dual,) = torch.autograd.grad(duals.value(x, y), x)
    (sinkhorn,) = torch.autograd.grad(sinkhorn_distance(x, y, 0.05), x)
    assert torch.cosine_similarity(dual.flatten(), sinkhorn.flatten(), dim=0) >= 0.9


def test_state_dict_carries_everything():
    x, y = clouds("scale")
    duals = DualPotentials(2, max_steps=1)
    duals.fit(x, y)
    other = DualPotentials(2, max_steps=1, seed=1)
    other.load_state_dict(copy.deepcopy(duals.state_dict()))
    assert torch.equal(other.value(x, y), duals.value(x, y))
    assert torch.equal(other(x), duals(x))
    assert other.n_fits == other.n_not_converged == 1
    assert torch.equal(other.fit(x, y).value, duals.fit(x, y).value)


def test_fits_are_functions_of_the_seed():
    x, y = clouds("modes")
    values = [DualPotentials(2, seed=seed).fit(x, y).value for seed in (3, 3, 4)]
    assert torch.equal(values[0], values[1])
    assert values[0] != values[2]


def test_too_few_newton_steps_are_counted_and_still_bound_from_below():
    x, y = clouds("shift")
    duals = DualPotentials(2, max_steps=2)
    fit = duals.fit(x, y)
    assert (fit.n_steps, fit.converged) == (2, False)
    assert (duals.n_fits.item(), duals.n_not_converged.item()) == (1, 1)
    assert fit.value < entropic_optimum(x, y, 0.05)[0]


def test_potentials_that_were_never_fitted_are_zero():
    assert torch.equal(DualPotentials(2)(cloud(4, 2)), torch.zeros(4, dtype=torch.float64))


# Degenerate and bad input


@st.composite
def degenerate_clouds(draw):
    d = draw(st.integers(1, 4))
    values = st.sampled_from([0.0, 1.0, -1.0, 1e-12, 1e-6, 3.0, 1e3, -1e6, 1e12])
    rows = st.lists(st.lists(values, min_size=d, max_size=d), min_size=1, max_size=5)
    return torch.tensor(draw(rows), dtype=torch.float64), torch.tensor(draw(rows), dtype=torch.float64)


@given(degenerate_clouds(), st.sampled_from([0.01, 0.2, 5.0]), st.sampled_from(COSTS))
@settings(max_examples=150, deadline=None)
def test_everything_is_finite_for_degenerate_clouds(pair, entropic_reg, cost):
    x, y = pair[0].requires_grad_(), pair[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distance = sinkhorn_distance(x, y, entropic_reg, cost, max_steps=100)
    assert torch.isfinite(distance)
    assert distance >= 0
    assert torch.isfinite(torch.autograd.grad(distance, x)[0]).all()
    duals = DualPotentials(x.shape[1], n_features=10, entropic_reg=entropic_reg, cost=cost)
    assert torch.isfinite(duals.fit(x, y).value)
    assert torch.isfinite(duals(x)).all()
    (gradient,) = torch.autograd.grad(duals.value(x, y), x)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 1), "x and y must have the same dimension, got 2 and 1"),
        (torch.zeros(0, 2), torch.zeros(3, 2), "x must be samples"),
        (torch.zeros(3, 2), torch.zeros(3), "y must be samples"),
        (torch.zeros(3, 2), torch.full((3, 2), math.nan), "y contains non-finite numbers"),
        (torch.full((3, 2), math.inf), torch.zeros(3, 2), "x contains non-finite numbers"),
    ],
)
def test_bad_samples_are_named(x, y, message):
    with pytest.raises(ValueError, match=message):
        sinkhorn_distance(x, y)
    with pytest.raises(ValueError, match=message):
        DualPotentials(2).fit(x, y)
    with pytest.raises(ValueError, match=message):
        DualPotentials(2).value(x, y)


def test_samples_of_another_dimension_than_the_potentials_are_named():
    with pytest.raises(ValueError, match="x must have dim=3 columns"):
        DualPotentials(3).fit(cloud(4, 2), cloud(4, 2))
    with pytest.raises(ValueError, match="x must have dim=3 columns"):
        DualPotentials(3)(cloud(4, 2))


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["entropic_reg", "max_steps", "tolerance"])
def test_parameters_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must be > 0"):
        sinkhorn_distance(cloud(2, 1), cloud(2, 1), **{name: value})
    with pytest.raises(ValueError, match=f"{name} must be > 0"):
        DualPotentials(1, **{name: value})


@pytest.mark.parametrize("name", ["dim", "n_features", "width", "ridge"])
def test_potentials_parameters_out_of_range_are_named(name):
    with pytest.raises(ValueError, match=f"{name} must be > 0"):
        DualPotentials(**{"dim": 2, name: 0})


def test_unknown_costs_are_refused():
    with pytest.raises(ValueError, match="cost must be 'sqeuclidean', 'euclidean' or 'saturating', got 'cosine'"):
        sinkhorn_distance(cloud(2, 1), cloud(2, 1), cost="cosine")
    with pytest.raises(ValueError, match="cost must be"):
        DualPotentials(1, cost="cosine")


# Total variation


def test_total_variation_is_transport_under_the_zero_one_cost():
    logits = cloud(4, 5)
    p, q = logits.softmax(1), cloud(4, 5, 1).softmax(1)
    zero_one = 1 - torch.eye(5, dtype=torch.float64)
    expected = torch.stack([ot.emd2(a, b, zero_one) for a, b in zip(p, q, strict=True)])
    torch.testing.assert_close(total_variation(p, q), expected)


def test_total_variation_of_equal_and_of_disjoint_laws():
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    q = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    assert total_variation(p, q).tolist() == [1.0, 0.0]


def test_total_variation_needs_equal_shapes():
    with pytest.raises(ValueError, match="p and q must both be"):
        total_variation(torch.ones(2, 3), torch.ones(2, 2))


def test_few_samples_in_many_dimensions_have_the_same_potentials_by_a_smaller_system(monkeypatch):
    """Newton's steps in the span of the samples' features end where those on all coefficients do."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 150, generator=generator), torch.randn(4, 150, generator=generator) + 0.5
    sizes = []

    def spy(problem, start, *args):
        sizes.append(start.shape[1])
        return _newton(problem, start, *args)

    monkeypatch.setattr(dual_potentials, "_newton", spy)
    small, whole = DualPotentials(150, n_features=60, tolerance=1e-12), DualPotentials(150, n_features=60, tolerance=1e-12)
    fits = [small.fit(x, y), small.fit(x + 0.1, y)]
    monkeypatch.setattr(dual_potentials, "_row_basis", lambda features: torch.eye(features.shape[1], dtype=torch.float64))
    for fit, points in zip(fits, (x, x + 0.1), strict=True):
        torch.testing.assert_close(whole.fit(points, y).value, fit.value, rtol=1e-8, atol=0)
    torch.testing.assert_close(small.coefficients, whole.coefficients, rtol=1e-5, atol=1e-8)
    elsewhere = torch.randn(20, 150, generator=generator)
    torch.testing.assert_close(small(elsewhere), whole(elsewhere))
    assert sizes == [10, 10, 210, 210]


def test_a_potential_carries_no_gradient():
    x = cloud(6, 2).requires_grad_()
    assert not sinkhorn_potential(x, cloud(5, 2, seed=1) + 1).requires_grad  # it weighs scores


def test_many_samples_and_little_blur_converge_at_any_tolerance():
    x, y = cloud(300, 2), 3 * cloud(300, 2, seed=1) + 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for tolerance in (1e-1, 3e-2, 1e-2, 1e-3):
            sinkhorn_distance(x, y, 0.01, tolerance=tolerance, max_steps=10_000)


def test_a_start_that_has_become_wrong_is_given_up():
    x, y = cloud(64, 2), cloud(64, 2, seed=1)
    duals = DualPotentials(2)
    duals.fit(x, y + 5)
    warm, cold = duals.fit(x, y - 5), DualPotentials(2).fit(x, y - 5)
    assert warm.n_steps <= cold.n_steps
    torch.testing.assert_close(warm.value, cold.value)


def test_plain_distances_have_duals_in_their_own_unit():
    x, y = cloud(100, 2), 2 * cloud(100, 2, seed=1)
    duals = DualPotentials(2, cost="euclidean")
    first, moved = duals.fit(x, y), duals.fit(100 * x - 300, 100 * y - 300)
    assert moved.n_steps == 0
    torch.testing.assert_close(moved.value, 100 * first.value, rtol=1e-9, atol=0)
