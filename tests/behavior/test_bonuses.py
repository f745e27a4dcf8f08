"""Bonuses for behaviour that differs from earlier behaviour."""

import ot
import pytest
import torch

from sb3_wng.behavior import NoveltyBonus, WassersteinBonus
from sb3_wng.geometry import DualPotentials


@pytest.fixture
def clouds():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 2, generator=generator), torch.randn(3, 2, generator=generator) + 1


@pytest.mark.parametrize("entropic_reg", [0.1, 0.2])
def test_wasserstein_potential_is_pots(clouds, entropic_reg):
    x, y = (cloud.double() for cloud in clouds)
    bonus = WassersteinBonus(n_previous=3, entropic_reg=entropic_reg, saturation=None)
    bonus.update(y)
    reg = entropic_reg * ot.dist(x, y).mean().item()
    potentials = []
    for other in (y, x):
        _, log = ot.sinkhorn(
            torch.full((40,), 1 / 40, dtype=torch.float64),
            torch.full((len(other),), 1 / len(other), dtype=torch.float64),
            ot.dist(x, other),
            reg,
            numItermax=100_000,
            stopThr=1e-12,
            method="sinkhorn_log",
            log=True,
        )
        potentials.append(reg * log["log_u"])
    # the potential of a cloud to itself is the half of u + v, which Sinkhorn splits at will
    symmetric = potentials[1] - potentials[1].mean()
    expected = potentials[0] - potentials[0].mean() - symmetric
    found = bonus(x)
    torch.testing.assert_close(found - found.mean(), expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("distance", ["sinkhorn", "dual"])
@pytest.mark.parametrize("saturation", [None, 1.0])
def test_behaviour_far_from_earlier_behaviour_scores_higher(distance, saturation):
    x = torch.linspace(0, 3, 30)[:, None] * torch.tensor([[1.0, 0.5]])
    bonus = WassersteinBonus(2, distance, saturation=saturation)
    bonus.update(torch.zeros(1, 2), x)
    scores = bonus(x)
    assert torch.corrcoef(torch.stack([scores, x.norm(dim=1)]))[0, 1] > 0.9


@pytest.mark.parametrize("saturation", [None, 0.3])
def test_dual_and_sinkhorn_agree(clouds, saturation):
    x, y = clouds
    scores = []
    for distance in ("sinkhorn", "dual"):
        bonus = WassersteinBonus(3, distance, saturation=saturation)
        bonus.update(y, x)
        scores.append(bonus(x))
    assert torch.corrcoef(torch.stack(scores))[0, 1] > (0.98 if saturation is None else 0.9)


def test_saturating_scores_do_not_depend_on_units_or_on_coordinates_that_never_vary(clouds):
    x, y = clouds
    scores = []
    for unit in (torch.ones(2), torch.tensor([1e-3, 1e4])):
        bonus = WassersteinBonus(3)
        bonus.update(
            torch.nn.functional.pad(unit * y, (0, 1), value=7.0), torch.nn.functional.pad(unit * x, (0, 1), value=0.1)
        )
        scores.append(bonus(torch.nn.functional.pad(unit * x, (0, 1), value=0.1)))
    torch.testing.assert_close(scores[0], scores[1], atol=1e-5, rtol=1e-4)
    assert scores[0].std() > 0.01


def test_the_unit_of_saturation_is_the_mean_square_distance_between_candidates(clouds):
    x, _ = clouds
    bonus = WassersteinBonus(saturation=0.5)
    bonus.update(x[:1], x)
    points = bonus._scaled(x)
    n = len(x)
    assert torch.cdist(points, points).square().sum() / n**2 == pytest.approx(1 / 0.5**2, rel=1e-4)


def test_an_outlier_decides_squared_scores_and_not_saturating_ones(clouds):
    x = torch.cat([clouds[0], torch.tensor([[1000.0, 0.0]])])
    shares = []
    for saturation in (None, 0.3):
        bonus = WassersteinBonus(saturation=saturation)
        bonus.update(clouds[1], clouds[0])
        scores = bonus(x)
        shares.append(((scores - scores.mean()).square()[-1] / (scores - scores.mean()).square().sum()).item())
    assert shares[0] > 0.95
    assert shares[1] < 0.5


def test_the_spread_is_the_mean_over_iterations_and_not_the_last(clouds):
    x, _ = clouds
    bonus = WassersteinBonus()
    bonus.update(x[:1], x)
    bonus.update(x[:1], 3 * x)
    torch.testing.assert_close(bonus.variance, 5 * x.double().var(dim=0, correction=0))


def test_only_the_last_policies_are_remembered():
    bonus = WassersteinBonus(n_previous=2)
    for value in range(5):
        bonus.update(torch.full((1, 3), float(value)))
    assert bonus.embeddings[:, 0].tolist() == [3.0, 4.0]


def test_divergence_is_zero_without_memory_and_where_clouds_coincide(clouds):
    x, _ = clouds
    bonus = WassersteinBonus(n_previous=len(x))
    assert bonus.value(x) == 0.0
    assert torch.equal(bonus(x), torch.zeros(len(x)))
    bonus.update(x)
    assert bonus.value(x) == pytest.approx(0, abs=1e-5)


def test_novelty_is_the_mean_distance_to_the_nearest_neighbours():
    bonus = NoveltyBonus(n_neighbors=2)
    bonus.update(torch.tensor([[0.0], [1.0], [10.0]]))
    torch.testing.assert_close(bonus(torch.tensor([[0.0], [4.0]])), torch.tensor([0.5, 3.5]))


def test_novelty_takes_what_neighbours_there_are():
    bonus = NoveltyBonus(n_neighbors=10)
    assert bonus(torch.ones(1, 2)).tolist() == [0.0]
    bonus.update(torch.zeros(1, 2))
    assert bonus(torch.tensor([[3.0, 4.0]])).tolist() == [5.0]


@pytest.mark.parametrize("bonus", [WassersteinBonus, NoveltyBonus])
def test_memory_travels_with_the_state(bonus, clouds):
    original, copy = bonus(), bonus()
    for embedding in clouds[1]:
        original.update(embedding[None], clouds[0])
    copy.load_state_dict(original.state_dict())
    torch.testing.assert_close(copy(clouds[0]), original(clouds[0]))
    assert len(copy.embeddings) == len(original.embeddings)
    copy.load_state_dict({}, strict=False)
    assert torch.equal(copy.embeddings, original.embeddings)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="n_previous must be >= 1"):
        WassersteinBonus(0)
    with pytest.raises(ValueError, match="distance must be one of 'sinkhorn', 'dual'"):
        WassersteinBonus(distance="l2")
    with pytest.raises(ValueError, match=r"saturation must be > 0 or None, got 0\.0"):
        WassersteinBonus(saturation=0.0)
    with pytest.raises(ValueError, match="n_neighbors must be >= 1"):
        NoveltyBonus(0)
    bonus = NoveltyBonus()
    bonus.update(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="2 columns as before, got 3"):
        bonus.update(torch.zeros(1, 3))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("bonus", [WassersteinBonus(), NoveltyBonus()], ids=["wasserstein", "novelty"])
def test_the_memory_keeps_no_graph(bonus):
    bonus.update(2 * torch.ones(1, 2, requires_grad=True))
    assert not bonus.embeddings.requires_grad


def test_dual_potentials_between_and_within_share_a_regularisation():
    x, y = normal(40, 2), 0.5 * normal(3, 2, seed=1) + 1
    bonus = WassersteinBonus(3, "dual", entropic_reg=0.3, n_features=20, saturation=None)
    bonus.update(y)
    across, within = (DualPotentials(2, 20, 0.3) for _ in range(2))
    across.fit(x, y)
    within.fit(x, x, across.gamma)
    torch.testing.assert_close(bonus(x), across(x) - within(x))


def test_distances_saturate_without_candidates_too():
    scores = []
    for scale, saturation in ((1.0, 0.25), (4.0, 1.0)):
        bonus = WassersteinBonus(saturation=saturation)
        bonus.update(scale * normal(3, 2, seed=1))
        scores.append(bonus(scale * normal(10, 2)))
    torch.testing.assert_close(*scores)


def test_the_logged_value_is_a_squared_distance():
    bonus = WassersteinBonus(saturation=None)
    bonus.update(normal(30, 2) + torch.tensor([3.0, 4.0]))
    assert bonus.value(normal(30, 2)) == pytest.approx(25.0, rel=1e-3)
