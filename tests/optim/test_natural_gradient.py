import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parameters_to_vector

from sb3_wng.geometry import BehaviorSample, EuclideanMetric, FactoredMetric, GaussNewtonMetric, Pathwise, wasserstein_factor
from sb3_wng.optim import (
    FixedRate,
    KernelWassersteinMetric,
    LevenbergMarquardtDamping,
    NaturalGradient,
    OptimizerStep,
    Trial,
    TrustRegion,
)
from sb3_wng.optim.steps import ROUNDING, hold_parameters


class Quadratic:
    """f(theta) = b.theta - |theta|^2 / 2 with distances |theta - theta_0|^2."""

    def __init__(self, b=(3.0, -4.0)):
        self.b = torch.as_tensor(b)
        self.parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]

    @property
    def theta(self):
        return parameters_to_vector(self.parameters).detach().clone()

    def evaluate(self):
        theta = self.theta
        value = (self.b @ theta - theta @ theta / 2).item()
        return Trial(value, theta.square().sum().item(), theta.square().sum().item() / 2)

    def step(self, natural, metric=None, gradient=None):
        gradient = self.b - self.theta if gradient is None else gradient
        return natural.step(self.parameters, gradient, metric or EuclideanMetric(), self.evaluate().objective, self.evaluate)


def test_trust_region_takes_the_longest_step_inside_the_radius():
    problem = Quadratic()
    report = problem.step(NaturalGradient(TrustRegion(radius=1.0), damping=0.0))
    assert report.accepted
    torch.testing.assert_close(problem.theta, torch.tensor([0.6, -0.8]))


def test_rounding_does_not_decide_whether_the_full_step_is_inside():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        problem = Quadratic(10 + torch.randn(2, generator=generator))
        problem.step(NaturalGradient(TrustRegion(radius=0.02), damping=0.1))
        assert problem.theta.square().sum().item() == pytest.approx(0.02, rel=1e-4)


def test_trust_region_backs_off_until_the_measured_distance_is_inside():
    problem = Quadratic()
    optimistic = FactoredMetric(0.5 * torch.eye(2))  # predicts a quarter of the true squared length
    report = problem.step(NaturalGradient(TrustRegion(radius=1.0, shrinking_factor=0.5), damping=0.1), optimistic)
    assert report.accepted
    assert report.trial.distance == pytest.approx(1.0, rel=1e-4)
    problem = Quadratic()
    report = problem.step(NaturalGradient(TrustRegion(radius=1.0, max_divergence=0.1, shrinking_factor=0.5), damping=0.0))
    assert report.trial.divergence <= 0.1


def test_trust_region_restores_the_parameters_when_nothing_improves():
    problem = Quadratic()
    before = problem.theta
    report = problem.step(NaturalGradient(TrustRegion(radius=1.0), damping=0.1), gradient=-problem.b)
    assert not report.accepted
    assert report.scale == 0
    assert torch.equal(problem.theta, before)


def test_trust_region_without_trials_takes_the_closed_form_step():
    problem = Quadratic()
    assert problem.step(NaturalGradient(TrustRegion(radius=4.0, max_iter=0), damping=0.0)).trial is None
    assert problem.theta.norm().item() == pytest.approx(2.0)


def test_fixed_rate_takes_the_rate_times_the_direction():
    problem = Quadratic()
    problem.step(NaturalGradient(FixedRate(0.25), damping=0.0))
    torch.testing.assert_close(problem.theta, 0.25 * problem.b)


def test_fixed_rate_is_shortened_to_its_divergence_cap():
    problem = Quadratic()
    report = problem.step(NaturalGradient(FixedRate(1.0, max_divergence=1.0), damping=0.0))
    assert report.scale == 0.25
    assert report.trial.divergence <= 1.0


def test_optimizer_step_hands_over_the_negative_direction_and_touches_nothing_else():
    problem, bystander = Quadratic(), nn.Parameter(torch.ones(1))
    bystander.grad = torch.ones(1)
    optimizer = torch.optim.SGD([*problem.parameters, bystander], lr=0.1)
    problem.step(NaturalGradient(OptimizerStep(optimizer), damping=0.0))
    torch.testing.assert_close(problem.theta, 0.1 * problem.b)
    assert bystander.item() == 1.0
    assert all(q.grad is None for q in problem.parameters)
    problem = Quadratic()
    rule = OptimizerStep(torch.optim.SGD(problem.parameters, lr=1.0), max_grad_norm=0.5)
    problem.step(NaturalGradient(rule, damping=0.0))
    assert problem.theta.norm().item() == pytest.approx(0.5)


def test_a_direction_that_does_not_ascend_falls_back_to_the_gradient():
    class Reversing(EuclideanMetric):
        def solve(self, grad, damping):
            return -grad

    problem = Quadratic()
    natural = NaturalGradient(FixedRate(0.1), damping=0.0)
    problem.step(natural, Reversing())
    torch.testing.assert_close(problem.theta, 0.1 * problem.b)
    assert natural.n_fallbacks.item() == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_numbers_skip_the_step_and_are_counted(bad):
    class Broken(EuclideanMetric):
        def solve(self, grad, damping):
            return grad * bad

    problem = Quadratic()
    before = problem.theta
    natural = NaturalGradient(FixedRate(0.1), damping=0.1)
    assert not problem.step(natural, gradient=torch.tensor([bad, 1.0])).accepted
    assert not problem.step(natural, Broken()).accepted
    assert torch.equal(problem.theta, before)
    assert natural.n_skipped.item() == 2


@pytest.mark.parametrize("rule", [TrustRegion(radius=1.0), FixedRate(1.0, max_divergence=1e9)], ids=["region", "rate"])
def test_a_trial_that_is_not_finite_is_never_accepted(rule):
    problem = Quadratic()
    natural = NaturalGradient(rule, damping=0.0)
    report = natural.step(problem.parameters, problem.b, EuclideanMetric(), 0.0, lambda: Trial(float("nan")))
    assert not report.accepted
    assert torch.equal(problem.theta, torch.zeros(2))


def test_reduction_ratio_tends_to_one_for_small_steps_and_is_exact_for_gauss_newton():
    for rate, weight, expected in ((1e-4, 0.0, 1.0), (0.5, 1.0, 1.0), (1.0, 0.0, 0.5)):
        problem = Quadratic()
        natural = NaturalGradient(FixedRate(rate, max_divergence=1e9), damping=0.0, curvature_weight=weight)
        assert problem.step(natural).reduction_ratio == pytest.approx(expected, abs=2e-3)


def test_a_quadratic_model_is_refused_where_the_step_is_not_along_the_direction():
    problem = Quadratic()
    optimizer = torch.optim.SGD(problem.parameters, lr=0.01)
    natural = NaturalGradient(OptimizerStep(optimizer), LevenbergMarquardtDamping(0.1), curvature_weight=1.0)
    with pytest.raises(ValueError, match="curvature_weight must be 0 with a length_metric or an optimizer"):
        problem.step(natural)
    natural.curvature_weight = 0.0
    assert problem.step(natural).reduction_ratio == pytest.approx(1.0, abs=1e-2)


def test_adaptive_damping_falls_on_good_steps_and_rises_on_bad_ones():
    for gradient, factor in ((None, 0.85), (torch.tensor([-3.0, 4.0]), 1 / 0.85)):
        problem = Quadratic()
        natural = NaturalGradient(TrustRegion(radius=0.01), LevenbergMarquardtDamping(0.1))
        problem.step(natural, gradient=gradient)
        assert natural.damping.value.item() == pytest.approx(0.1 * factor)


def test_adaptive_damping_is_measured_even_where_the_step_rule_measures_nothing():
    problem = Quadratic()
    natural = NaturalGradient(FixedRate(1e-3), LevenbergMarquardtDamping(0.1))
    assert problem.step(natural).reduction_ratio == pytest.approx(1.0, abs=1e-2)
    assert natural.damping.value.item() < 0.1


def test_state_survives_the_state_dict():
    problem = Quadratic()
    natural = NaturalGradient(TrustRegion(radius=0.01), LevenbergMarquardtDamping(0.1))
    problem.step(natural)
    problem.step(natural, gradient=torch.full((2,), float("nan")))
    fresh = NaturalGradient(TrustRegion(radius=0.01), LevenbergMarquardtDamping(0.1))
    fresh.load_state_dict(natural.state_dict())
    assert fresh.damping.value.item() == natural.damping.value.item() != 0.1
    assert fresh.n_skipped.item() == 1


def test_the_kernel_metrics_generator_survives_the_state_dict():
    metric, fresh = KernelWassersteinMetric(5, seed=0), KernelWassersteinMetric(5, seed=1)
    metric.generator.manual_seed(3)
    torch.randn(4, generator=metric.generator)
    fresh.load_state_dict(metric.state_dict())
    assert torch.equal(torch.randn(4, generator=metric.generator), torch.randn(4, generator=fresh.generator))


def test_gauss_newton_training_of_a_supervised_loss_as_the_docstring_shows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
    y = x.sin()
    parameters = list(model.parameters())

    def loss():
        return 0.5 * (model(x) - y).square().sum(dim=1).mean()

    def train(natural, metric_of):
        for _ in range(60):
            outputs = model(x)
            value = 0.5 * (outputs - y).square().sum(dim=1).mean()
            gradient = -parameters_to_vector(torch.autograd.grad(value, parameters, retain_graph=True))
            natural.step(parameters, gradient, metric_of(outputs), -value.item(), lambda: Trial(-loss().item()))
        return loss().item()

    start = {name: value.clone() for name, value in model.state_dict().items()}
    natural = NaturalGradient(FixedRate(1.0), LevenbergMarquardtDamping(1e-2), curvature_weight=1.0)
    newton = train(natural, lambda outputs: GaussNewtonMetric(outputs, parameters, lambda tangent: tangent, 30))
    model.load_state_dict(start)
    plain = train(NaturalGradient(FixedRate(0.3), 0.0), lambda _: EuclideanMetric())
    assert newton < 1e-5
    assert newton < 1e-2 * plain


@settings(max_examples=60, deadline=None)
@given(
    b=st.tuples(*[st.floats(-1e12, 1e12)] * 2),
    log_radius=st.floats(-12, 3),
    log_factor=st.floats(-10, 10),
    rank=st.integers(0, 2),
)
def test_steps_are_finite_and_never_lose_at_any_scale(b, log_radius, log_factor, rank):
    problem = Quadratic(b)
    factor = 10.0**log_factor * torch.eye(2)
    factor[rank:] = 0
    report = problem.step(NaturalGradient(TrustRegion(10.0**log_radius), damping=0.1), FactoredMetric(factor))
    assert torch.isfinite(problem.theta).all()
    if report.accepted:
        assert report.trial.objective > 0
        assert report.trial.distance <= (1 + ROUNDING) * 10.0**log_radius
    else:
        assert torch.equal(problem.theta, torch.zeros(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrustRegion(radius=-0.1), "radius must be >= 0"),
        (lambda: TrustRegion(radius=math.nan), "radius must be >= 0"),
        (lambda: TrustRegion(1.0, max_divergence=-1.0), "max_divergence must be >= 0"),
        (lambda: TrustRegion(1.0, shrinking_factor=1.0), "shrinking_factor must be in"),
        (lambda: TrustRegion(1.0, max_iter=-1), "max_iter must be >= 0"),
        (lambda: FixedRate(-1.0), "rate must be >= 0"),
        (lambda: NaturalGradient(FixedRate(1.0), damping=-0.1), "damping must be"),
        (lambda: KernelWassersteinMetric(n_basis=0), "n_basis must be >= 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_kernel_metric_is_scaled_as_it_is_told():
    generator = torch.Generator().manual_seed(0)
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    sample = BehaviorSample(theta.detach() + noise, Pathwise(theta + noise, [theta]))
    plain, scaled = (KernelWassersteinMetric(5, seed=0)(sample, scale) for scale in (1.0, 9.0))
    vector = torch.tensor([1.0, -2.0], dtype=torch.float64)
    torch.testing.assert_close(scaled.product(vector), 9 * plain.product(vector))
    assert plain.product(vector).norm() > 0


def test_a_zero_direction_falls_back_to_the_gradient():
    class Blind(EuclideanMetric):
        def solve(self, grad, damping):  # as conjugate gradient where it sees no curvature
            return torch.zeros_like(grad)

    problem, natural = Quadratic(), NaturalGradient(FixedRate(0.1), damping=0.0)
    problem.step(natural, Blind())
    torch.testing.assert_close(problem.theta, 0.1 * problem.b)
    assert natural.n_fallbacks.item() == 1


def test_the_length_is_measured_by_the_metric_that_is_meant_for_it():
    problem, natural = Quadratic(), NaturalGradient(TrustRegion(radius=1.0, max_iter=0), damping=0.1)
    rough = FactoredMetric(0.5 * torch.eye(2))
    natural.step(problem.parameters, problem.b, rough, 0.0, problem.evaluate, length_metric=EuclideanMetric())
    assert problem.theta.norm().item() == pytest.approx(1.0)


@pytest.mark.parametrize("rule", [FixedRate(0.1), TrustRegion(1.0)], ids=["rate", "region"])
def test_a_curvature_that_is_not_finite_is_skipped(rule):
    class Endless(EuclideanMetric):
        def product(self, vector):
            return vector * math.inf

    problem, natural = Quadratic(), NaturalGradient(rule, damping=0.0)
    assert not problem.step(natural, Endless()).accepted
    assert torch.equal(problem.theta, torch.zeros(2))
    assert natural.n_skipped.item() == 1


def test_an_infinite_direction_is_skipped_and_no_fallback():
    class Broken(EuclideanMetric):
        def solve(self, grad, damping):
            return -grad * math.inf

    problem, natural = Quadratic(), NaturalGradient(FixedRate(0.1), damping=0.1)
    assert not problem.step(natural, Broken()).accepted
    assert (natural.n_skipped.item(), natural.n_fallbacks.item()) == (1, 0)


def test_a_fall_that_was_predicted_is_no_success():
    problem = Quadratic()
    natural = NaturalGradient(FixedRate(3.0), LevenbergMarquardtDamping(0.1), curvature_weight=1.0)
    assert problem.step(natural).reduction_ratio == 0
    assert natural.damping.value.item() > 0.1


@pytest.mark.parametrize("max_iter", [0, 10])
def test_a_radius_of_zero_refuses_and_measures_nothing(max_iter):
    problem, calls = Quadratic(), []
    natural = NaturalGradient(TrustRegion(0.0, max_iter=max_iter), LevenbergMarquardtDamping(0.1))
    report = natural.step(problem.parameters, problem.b, EuclideanMetric(), 0.0, lambda: calls.append(1))
    assert report[:3] == (False, 0.0, None)
    assert calls == []


def test_several_steps_may_share_a_larger_region():
    problem, optimistic = Quadratic(), FactoredMetric(0.5 * torch.eye(2))  # predicts a quarter of the true squared length
    report = problem.step(NaturalGradient(TrustRegion(1.0, max_distance=4.0), damping=0.1), optimistic)
    assert report.trial.distance == pytest.approx(4.0, rel=1e-4)


def test_a_fixed_rate_with_a_cap_asks_for_no_improvement():
    report = Quadratic().step(NaturalGradient(FixedRate(3.0, max_divergence=1e9), damping=0.0))
    assert report.scale == 3.0
    assert report.trial.objective < 0


def test_an_optimiser_forgets_parameters_that_were_replaced():
    old, new = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([old])
    old.grad = torch.ones(2)
    optimizer.step()
    hold_parameters(optimizer, [new])
    assert optimizer.state_dict()["state"] == {}  # torch could not save what belongs to no parameter


def test_the_kernel_metric_passes_its_settings_on():
    generator = torch.Generator().manual_seed(0)
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(50, 2, generator=generator, dtype=torch.float64) * (1 + theta) + theta
    sample, vector = BehaviorSample(x, Pathwise(x, [theta])), torch.tensor([1.0, -2.0], dtype=torch.float64)
    for log_bandwidth in (0.0, 1.0):
        factor = wasserstein_factor(sample, 3, log_bandwidth, torch.Generator().manual_seed(4))
        found = KernelWassersteinMetric(3, log_bandwidth, diagonal_damping=True, seed=4)(sample)
        torch.testing.assert_close(found.solve(vector, 0.3), FactoredMetric(factor, True).solve(vector, 0.3))


def test_without_a_seed_kernel_metrics_draw_one():
    torch.manual_seed(0)
    first, second = (KernelWassersteinMetric().generator.initial_seed() for _ in range(2))
    assert first != second
    torch.manual_seed(0)
    assert KernelWassersteinMetric().generator.initial_seed() == first
