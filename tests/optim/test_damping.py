import pytest
import torch

from sb3_wng.optim import Damping, LevenbergMarquardtDamping


def test_constant_damping_learns_nothing():
    damping = Damping(0.3)
    damping.update(0.0)
    assert damping.value.item() == 0.3


@pytest.mark.parametrize(
    ("ratio", "direction"), [(0.0, 1), (-3.0, 1), (float("nan"), 1), (0.2, 1), (0.5, 0), (0.9, -1), (5.0, -1)]
)
def test_levenberg_marquardt_goes_up_and_down(ratio, direction):
    damping = LevenbergMarquardtDamping(0.1)
    damping.update(ratio)
    assert damping.value.item() == pytest.approx(0.1 * 0.85 ** (-direction))


def test_levenberg_marquardt_stays_within_its_bounds():
    damping = LevenbergMarquardtDamping(1.0, minimum=0.5, maximum=2.0)
    for ratio, bound in ((1.0, 0.5), (0.0, 2.0)):
        for _ in range(50):
            damping.update(ratio)
        assert damping.value.item() == bound


def test_levenberg_marquardt_goes_by_the_best_ratio_of_an_interval():
    damping = LevenbergMarquardtDamping(0.1, interval=3)
    for ratio, expected in ((0.0, 0.1), (0.9, 0.1), (0.0, 0.085), (0.0, 0.085), (0.0, 0.085), (0.0, 0.1)):
        damping.update(ratio)
        assert damping.value.item() == pytest.approx(expected)


def test_damping_travels_with_the_state_dict():
    damping, fresh = LevenbergMarquardtDamping(0.1), LevenbergMarquardtDamping(0.1)
    damping.update(0.0)
    fresh.load_state_dict(damping.state_dict())
    assert torch.equal(fresh.value, damping.value)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_damping_must_be_a_finite_number_that_is_not_negative(value):
    with pytest.raises(ValueError, match="damping must be a finite number >= 0"):
        Damping(value)


def test_levenberg_marquardt_refuses_a_band_or_factor_that_cannot_work():
    with pytest.raises(ValueError, match="damping must lie in"):
        LevenbergMarquardtDamping(0.0)
    with pytest.raises(ValueError, match="damping must lie in"):
        LevenbergMarquardtDamping(0.1, maximum=0.05)
    with pytest.raises(ValueError, match="factor must be in"):
        LevenbergMarquardtDamping(0.1, factor=1.5)
    with pytest.raises(ValueError, match="interval must be >= 1"):
        LevenbergMarquardtDamping(0.1, interval=0)
    with pytest.raises(ValueError, match="low < high"):
        LevenbergMarquardtDamping(0.1, low=0.75, high=0.75)


def test_a_setting_that_is_kept_survives_one_load():
    saved, damping = LevenbergMarquardtDamping(0.1), LevenbergMarquardtDamping(3.0)
    saved.update(0.0)
    damping.keeps_setting = True
    damping.load_state_dict(saved.state_dict())
    assert damping.value.item() == 3.0
    damping.load_state_dict(saved.state_dict())
    assert damping.value.item() == saved.value.item()
