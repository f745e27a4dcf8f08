import numpy as np
import pytest

from sb3_wng.benchmarks import gaussian_toy as toy

MEAN, VARIANCE = np.array([0.3, -2.0, 7.0, 30.0, 1e-5]), np.array([4.0, 0.5, 1e-3, 1e-8, 1e-12])


def test_the_loss_is_the_expectation_of_one_minus_sinc():
    draws = np.random.default_rng(1).standard_normal((400_000, 2))
    x = MEAN[:2] + np.sqrt(VARIANCE[:2]) * draws
    sampled = (1 - np.sinc(x / np.pi)).mean(axis=0)
    np.testing.assert_allclose(toy.loss(MEAN[:2], VARIANCE[:2]), sampled, atol=3e-3)


def test_the_loss_keeps_its_digits_near_the_optimum():
    # 1 - sinc x = x^2 / 6 - ..., hence (mu^2 + variance) / 6
    mean, variance = np.array([1e-9, 0.0, 1e-60]), np.array([1e-20, 1e-100, 1e-120])
    np.testing.assert_allclose(toy.loss(mean, variance), (mean**2 + variance) / 6, rtol=1e-12)


def test_the_loss_of_a_point_mass_is_the_function_itself():
    x = np.array([0.1, 3.0, 20.0])
    np.testing.assert_allclose(toy.loss(x, np.full(3, 1e-30)), 1 - np.sin(x) / x, rtol=1e-12)


@pytest.mark.parametrize("index", [0, 1])
def test_gradients_agree_with_differences(index):
    step = 1e-6
    moved = [[MEAN[:2], VARIANCE[:2]], [MEAN[:2], VARIANCE[:2]]]
    for sign, point in zip((1, -1), moved, strict=True):
        point[index] = point[index] + sign * step
    difference = (toy.loss(*moved[0]) - toy.loss(*moved[1])) / (2 * step)
    np.testing.assert_allclose(toy.loss_gradient(MEAN[:2], VARIANCE[:2])[index], difference, rtol=1e-6)


@pytest.mark.parametrize("kind", ["W2", "KL"])
def test_penalties_are_flat_at_their_reference_and_agree_with_differences(kind):
    reference = np.array([0.2]), np.array([1.5])

    def value(mean, variance):
        if kind == "W2":
            return ((mean - reference[0]) ** 2 + (np.sqrt(variance) - np.sqrt(reference[1])) ** 2) / 2
        ratio = variance / reference[1]
        return (ratio + (mean - reference[0]) ** 2 / reference[1] - 1 - np.log(ratio)) / 2

    assert np.allclose(toy.penalty_gradient(kind, *reference, reference), 0, atol=1e-15)
    mean, variance, step = np.array([-0.4]), np.array([0.7]), 1e-6
    by_mean, by_variance = toy.penalty_gradient(kind, mean, variance, reference)
    np.testing.assert_allclose(by_mean, (value(mean + step, variance) - value(mean - step, variance)) / (2 * step), rtol=1e-6)
    difference = (value(mean, variance + step) - value(mean, variance - step)) / (2 * step)
    np.testing.assert_allclose(by_variance, difference, rtol=1e-6)


@pytest.mark.parametrize("parameterization", toy.PARAMETERIZATIONS)
@pytest.mark.parametrize("gradient", ["FNG", "WNG"])
def test_natural_gradients_solve_with_their_metric(gradient, parameterization):
    mean, variance = MEAN[:2], VARIANCE[:2]
    by_mean, by_variance = toy.loss_gradient(mean, variance)
    std, slope = np.sqrt(variance), 2 * variance if parameterization == "log" else np.ones(2)  # d variance / d v
    # W2^2 = |d mean|^2 + |d std|^2, and Fisher's metric in (mean, std)
    metric_mean, metric_std = (1, 1) if gradient == "WNG" else (1 / variance, 2 / variance)
    metric_v = metric_std * (slope / (2 * std)) ** 2
    step_mean, step_v = toy.direction(gradient, parameterization, variance, by_mean, by_variance)
    np.testing.assert_allclose(metric_mean * step_mean, by_mean, rtol=1e-12)
    np.testing.assert_allclose(metric_v * step_v, slope * by_variance, rtol=1e-12)


def test_natural_gradients_hardly_depend_on_the_parameterization_and_the_plain_gradient_does():
    ends = {
        (gradient, form): toy.trace("curve", toy.Method(gradient), form, 0.01, 0.0, 50, 5)[-1]["first_std"]
        for gradient in toy.GRADIENTS
        for form in toy.PARAMETERIZATIONS
    }
    values = {key: float(value) for key, value in ends.items()}
    for gradient in ("WNG", "FNG"):
        assert values[gradient, "log"] == pytest.approx(values[gradient, "diagonal"], rel=0.01)
    assert values["SGD", "log"] != pytest.approx(values["SGD", "diagonal"], rel=0.05)


def test_a_clamped_descent_stays_at_the_clamp():
    *_, (mean, variance) = toy.descend(toy.Method("WNG"), "diagonal", 0.9, 0.0, np.zeros(3), np.full(3, 0.1), 2000)
    assert (variance == toy.MIN_VARIANCE).all()
    assert (mean == 0).all()


def test_overflow_is_recorded_and_not_an_error():
    records = toy.trace("penalty", toy.Method("SGD", "KL"), "log", 0.9, 10.0)
    assert records[-1]["loss"] == "nan"
