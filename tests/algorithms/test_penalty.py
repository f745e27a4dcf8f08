"""The penalty's numbers: its distances, the unit they are divided by, their gradients and the coefficient's adaptation."""

import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from torch.distributions import Normal, kl_divergence

from sb3_wng import BGPG
from sb3_wng.algorithms.penalty import DISTANCES, BehaviorPenalty, SampleTransport
from sb3_wng.algorithms.surrogate import PolicyBatch
from sb3_wng.behavior import FinalState, StateVisitation
from sb3_wng.geometry import CategoricalLaw, GaussianLaw, sinkhorn_distance

ALL = [distance for distance in DISTANCES if distance != "total_variation"]
SAMPLED = ["sinkhorn", "dual"]


def laws(scale=1.0, n=60):
    """The policy that collected a batch and a new one, in actions of any unit; the spread is 5 units squared."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(n, 2, generator=generator)
    old = GaussianLaw(scale * mean, scale * torch.tensor([1.0, 2.0]).expand(n, 2))
    return old, GaussianLaw(scale * (mean + 0.5), scale * torch.tensor([0.3, 2.5]).expand(n, 2))


def batch_of(old):
    empty = torch.zeros(len(old.coordinates), 1)
    return PolicyBatch(empty, empty, empty[:, 0], empty[:, 0], old)


def term(distance, old, new, coefficient=2.0, **settings):
    """The distance, and the term of the loss that it makes."""
    penalty = BehaviorPenalty(coefficient, distance, seed=0, **settings)
    penalty.begin(old)
    value = penalty.distance_of(new, batch_of(old))
    return value.item(), penalty.weigh(value).item()


def test_terms_of_the_loss_are_those_written_out():
    old, new = laws()
    value, weighed = term("closed_form", old, new)
    assert value == pytest.approx(2 * 0.5**2 + 0.7**2 + 0.5**2)
    assert weighed == pytest.approx(2 * value / 5)
    value, weighed = term("kl", old, new)
    expected = kl_divergence(Normal(old.mean, old.std), Normal(new.mean, new.std)).sum(dim=1).mean().item()
    assert value == pytest.approx(expected)
    assert weighed == pytest.approx(2 * value / (0.5 * 2))


@pytest.mark.parametrize("distance", SAMPLED)
def test_sampled_terms_are_near_those_of_their_laws(distance):
    old, new = laws(n=250)
    assert term(distance, old, new)[1] == pytest.approx(term("closed_form", old, new)[1], rel=0.45)
    several = term(distance, old, new, n_resampled=10)[1]  # ten times as far, in a space with ten times the variance
    assert several == pytest.approx(term("closed_form", old, new)[1], rel=0.45)


@pytest.mark.parametrize("distance", ALL)
@pytest.mark.parametrize("n_resampled", [1, 10])
def test_terms_do_not_depend_on_the_unit_of_actions(distance, n_resampled):
    one, thousand = (term(distance, *laws(scale), n_resampled=n_resampled)[1] for scale in (1.0, 1000.0))
    assert one == pytest.approx(thousand, rel=1e-3)


@pytest.mark.parametrize("distance", ["closed_form", "kl"])
def test_resampled_actions_only_count_where_there_are_samples(distance):
    assert term(distance, *laws(), n_resampled=10) == term(distance, *laws(), n_resampled=1)


def test_total_variation_is_divided_by_the_spread_of_a_discrete_law():
    generator = torch.Generator().manual_seed(0)
    old, new = (CategoricalLaw(torch.randn(5, 3, generator=generator).log_softmax(dim=1), (3,)) for _ in range(2))
    value, weighed = term("total_variation", old, new)
    p, q = old.log_probs.exp(), new.log_probs.exp()
    assert value == pytest.approx(0.5 * (p - q).abs().sum(dim=1).mean().item())
    assert weighed == pytest.approx(2 * value / (0.5 * (1 - p.square().sum(dim=1)).mean().item()), rel=1e-5)


def test_windows_are_charged_by_their_potential_in_units_of_the_spread():
    points = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    signals = []
    for scale in (1.0, 1000.0):
        penalty = BehaviorPenalty(3.0, "sinkhorn", embedding=FinalState(), seed=0)
        assert not penalty.signal(scale * points).any()  # nothing to compare with yet
        signals.append(penalty.signal(scale * (points + torch.tensor([2.0, 0.0]))))
    torch.testing.assert_close(*signals, rtol=1e-3, atol=1e-3)
    assert signals[0].mean().abs() < 1e-4
    # far out is far from where the last rollout was
    assert torch.corrcoef(torch.stack([signals[0], points[:, 0]]))[0, 1] > 0.9
    # (2 x distance) per unit along the shift, in units of both samples' total variance
    both = torch.cat([points, points + torch.tensor([2.0, 0.0])])
    slope = torch.linalg.lstsq(torch.cat([points, torch.ones(40, 1)], dim=1), signals[0]).solution[0].item()
    assert slope == pytest.approx(3 * 2 * 2 / both.var(dim=0).sum().item(), rel=0.2)


@pytest.mark.parametrize(("distance", "factor"), [(1.6, 1.5), (1.4, 1.0), (0.7, 1.0), (0.6, 1 / 1.5)])
def test_the_coefficient_adapts_to_the_distance_in_units(distance, factor):
    penalty = BehaviorPenalty(1.0, is_adaptive=True)
    old, _ = laws()
    penalty.begin(old)
    penalty.adapt(5 * 0.02 * distance, 0.02)  # 5: the unit
    assert penalty.coefficient == pytest.approx(factor)


@pytest.mark.parametrize("distance", SAMPLED)
def test_the_gradient_between_samples_is_that_of_the_distance(distance):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 2, generator=generator), torch.randn(60, 2, generator=generator) + torch.tensor([1.0, 0.5])
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(SampleTransport(distance, 0.2).value(x, y), x)
    (expected,) = torch.autograd.grad(sinkhorn_distance(x, y, 0.2), x)
    assert torch.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0) > 0.97
    assert gradient.norm() == pytest.approx(expected.norm().item(), rel=0.1)
    (at_itself,) = torch.autograd.grad(SampleTransport(distance, 0.2).value(x, x.detach().clone()), x)
    assert at_itself.norm() < 0.02 * gradient.norm()


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("shift", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("distance", SAMPLED)
def test_a_translation_has_its_square_as_distance_and_nothing_else_to_ask_for(distance, shift, d):
    x = torch.randn(200, d, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = x.detach().roll(1, dims=0) + shift * torch.eye(d)[0]
    value = SampleTransport(distance, 0.2).value(x, y)
    assert value.item() == pytest.approx(shift**2, rel=0.005)
    (gradient,) = torch.autograd.grad(value, x)
    expected = -2 * shift * torch.eye(d)[0]
    torch.testing.assert_close(200 * gradient, expected.expand(200, d), rtol=0, atol=0.1 * shift)
    x = x.detach()
    potential = SampleTransport(distance, 0.2).potential(x, y)
    terms = torch.stack([torch.ones(200), x[:, 0], x[:, 0].square()], dim=1)
    _, slope, curvature = torch.linalg.lstsq(terms, potential[:, None]).solution[:, 0]
    assert slope.item() == pytest.approx(-2 * shift, rel=0.01)
    assert abs(curvature) < 0.01 * shift  # no pull towards a smaller or a larger cloud


class Recorded(StateVisitation):
    """Keeps the observations that it has seen."""

    name = "recorded"

    def __init__(self):
        self.seen = []

    def __call__(self, trajectories):
        self.seen.append(trajectories.observations[trajectories.mask])
        return super().__call__(trajectories)


def test_a_reference_for_single_actions_is_thinned_as_the_batch_is(small):
    """Plans grow with its size, and it is transported in every minibatch."""
    points = np.arange(700, dtype=np.float32)[:, None]
    model = small(BGPG, "Pendulum-v1", distance="sinkhorn", reference=points)
    assert model.penalty.reference.flatten().tolist() == list(range(0, 700, 3))
    trajectories = small(BGPG, "Pendulum-v1", distance="sinkhorn", embedding=FinalState(), reference=points.repeat(3, axis=1))
    assert len(trajectories.penalty.reference) == 700


def test_a_reference_is_compared_in_the_environments_own_units(small):
    env = VecNormalize(make_vec_env("Pendulum-v1", seed=0))
    env.obs_rms.mean, env.obs_rms.var = np.array([0.5, 0.0, 30.0]), np.array([4.0, 1.0, 100.0])
    env.training = False
    embedding = Recorded()
    reference = np.zeros((10, 3), dtype=np.float32)
    settings = {"distance": "sinkhorn", "embedding": embedding, "embedding_horizon": 8, "reference": reference}
    small(BGPG, env, n_policy_updates=2, policy_batch_size=16, **settings).learn(32)
    seen = embedding.seen[-1]
    assert seen[:, 2].abs().max() < 9  # rates of the pendulum
    torch.testing.assert_close(seen[:, :2].norm(dim=1), torch.ones(len(seen)))  # cosine and sine


def test_the_coefficient_keeps_within_bounds():
    penalty = BehaviorPenalty(1.0, is_adaptive=True)
    penalty.begin(GaussianLaw(torch.zeros(5, 2), torch.ones(5, 2)))
    for distance, bound in ((1e9, 1e4), (0.0, 1e-4)):
        for _ in range(60):
            penalty.adapt(distance, 0.02)
        assert penalty.coefficient.item() == pytest.approx(bound)


def test_the_unit_of_a_reference_is_the_variance_of_both_samples():
    generator = torch.Generator().manual_seed(0)
    old = GaussianLaw(torch.randn(60, 2, generator=generator), torch.ones(60, 2))
    reference = 5 + torch.randn(30, 2, generator=generator)
    penalty = BehaviorPenalty(2.0, "sinkhorn", reference=reference, seed=0)
    penalty.begin(old)
    points = torch.cat([penalty._points(old, penalty.rollout_noise), reference])
    assert penalty.standing.unit == pytest.approx(points.var(dim=0, correction=0).sum().item(), rel=0.03)
