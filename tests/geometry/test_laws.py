"""Closed forms against POT, torch.distributions and dense matrices."""

from dataclasses import replace

import numpy as np
import ot
import pytest
import torch

from sb3_wng.geometry import CategoricalLaw, GaussianLaw, GaussNewtonMetric, graph_laplacian_solve


def gaussian(n=4, d=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(n, d, generator=generator, dtype=torch.float64)
    std = torch.rand(n, d, generator=generator, dtype=torch.float64) + 0.2
    return GaussianLaw(mean, std)


def categorical(n=4, sizes=(3, 2), seed=0):
    logits = torch.randn(n, sum(sizes), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return CategoricalLaw(torch.cat([part.log_softmax(1) for part in logits.split(list(sizes), 1)], 1), sizes)


def test_gaussian_wasserstein_distance_is_pots():
    p, q = gaussian(seed=0), gaussian(seed=1)
    for i, distance in enumerate(p.wasserstein_distance(q)):
        covariances = [np.diag(law.std[i].numpy() ** 2) for law in (p, q)]
        root = ot.gaussian.bures_wasserstein_distance(p.mean[i].numpy(), q.mean[i].numpy(), *covariances)
        assert distance.item() == pytest.approx(root**2, rel=1e-9)


def test_gaussian_kl_is_torchs_summed_over_dimensions():
    p, q = gaussian(seed=0), gaussian(seed=1)
    normals = [torch.distributions.Normal(law.mean, law.std) for law in (p, q)]
    torch.testing.assert_close(p.kl_divergence(q), torch.distributions.kl_divergence(*normals).sum(1))


def test_categorical_kl_is_torchs_summed_over_factors():
    p, q = categorical(seed=0), categorical(seed=1)
    expected = 0
    for a, b in zip(p.log_probs.split([3, 2], 1), q.log_probs.split([3, 2], 1), strict=True):
        pair = torch.distributions.Categorical(logits=a), torch.distributions.Categorical(logits=b)
        expected = expected + torch.distributions.kl_divergence(*pair)
    torch.testing.assert_close(p.kl_divergence(q), expected)


@pytest.mark.parametrize("make", [gaussian, categorical])
def test_distances_vanish_only_between_equal_laws(make):
    law, other = make(seed=0), make(seed=1)
    for distance in ("wasserstein_distance", "kl_divergence"):
        torch.testing.assert_close(getattr(law, distance)(law), torch.zeros(4, dtype=torch.float64))
        assert (getattr(law, distance)(other) > 0).all()


def test_the_variance_is_that_of_actions_and_one_hot_actions():
    generator = torch.Generator().manual_seed(0)
    law = gaussian()
    actions = law.mean + law.std * torch.randn(40_000, 4, 3, generator=generator, dtype=torch.float64)
    assert law.variance().item() == pytest.approx(actions.var(dim=0).sum(dim=1).mean().item(), rel=0.02)
    law = categorical(sizes=(3,))
    drawn = law.log_probs.exp().multinomial(40_000, replacement=True, generator=generator)
    one_hot = torch.nn.functional.one_hot(drawn, 3).double()
    assert law.variance().item() == pytest.approx(one_hot.var(dim=1).sum(dim=1).mean().item(), rel=0.02)


def coin(p):
    return torch.tensor([p, 1 - p], dtype=torch.float64)


LAWS = {
    "Gaussian": (gaussian(), lambda law: replace(law, mean=law.mean + 1e-4 * law.std)),
    **{
        f"{len(p)} actions": (CategoricalLaw(p.log()[None], (len(p),)), lambda law: moved(law))
        for p in (coin(0.5), coin(0.1), *(torch.full((n,), 1 / n, dtype=torch.float64) for n in (3, 6, 18)))
    },
}


def moved(law):
    """A law with slightly other probabilities."""
    generator = torch.Generator().manual_seed(0)
    logits = law.log_probs + 1e-3 * torch.randn(law.log_probs.shape, generator=generator, dtype=torch.float64)
    return replace(law, log_probs=logits.log_softmax(dim=1))


@pytest.mark.parametrize("name", LAWS)
def test_a_distance_in_units_of_the_spread_is_twice_the_divergence_of_each_dimension(name):
    law, change = LAWS[name]
    if name == "Gaussian":  # the dimensions weigh alike where their spreads do
        law = replace(law, std=torch.full_like(law.std, 0.3))
    other = change(law)
    distance = other.wasserstein_distance(law).mean() / law.spread()
    assert distance.item() == pytest.approx(2 * law.kl_divergence(other).mean().item() / law.n_actions, rel=0.01)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_graph_laplacian_solve_is_the_dense_pseudo_inverse(size):
    generator = torch.Generator().manual_seed(size)
    p = torch.rand(5, size, generator=generator, dtype=torch.float64).softmax(1)
    p[0] = torch.eye(size, dtype=torch.float64)[0]  # a deterministic law is no special case
    change = torch.randn(5, size, generator=generator, dtype=torch.float64)
    change = change - change.mean(1, keepdim=True)
    for state in range(5):
        laplacian = torch.zeros(size, size, dtype=torch.float64)
        for i in range(size):
            for j in range(i):
                edge = torch.eye(size, dtype=torch.float64)[i] - torch.eye(size, dtype=torch.float64)[j]
                laplacian += (p[state, i] + p[state, j]) / 2 * torch.outer(edge, edge)
        expected = torch.linalg.pinv(laplacian) @ change[state]
        torch.testing.assert_close(graph_laplacian_solve(p, change)[state], expected, rtol=1e-9, atol=1e-9)


def test_categorical_fisher_product_is_the_dense_fisher_matrix():
    logits = torch.randn(1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    law = CategoricalLaw(logits.log_softmax(1), (4,))
    metric = GaussNewtonMetric(law.coordinates, [logits], law.fisher_product)
    p = logits.detach().softmax(1)[0]
    dense = torch.diag(p) - torch.outer(p, p)
    for row, expected in zip(torch.eye(4, dtype=torch.float64), dense, strict=True):
        torch.testing.assert_close(metric.product(row), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("metric", ["wasserstein", "fisher"])
@pytest.mark.parametrize("make", [gaussian, categorical])
@pytest.mark.parametrize("std_weight", [1.0, 4.0])
def test_distances_agree_with_their_metric_to_second_order(make, metric, std_weight):
    law = make()
    generator = torch.Generator().manual_seed(5)
    if make is gaussian:
        tangent = torch.randn(law.coordinates.shape, generator=generator, dtype=torch.float64)

        def moved(h):
            return GaussianLaw(*(law.coordinates + h * tangent).chunk(2, 1), std_weight)

        law = moved(0.0)
    else:
        noise = torch.randn(law.coordinates.shape, generator=generator, dtype=torch.float64)

        def moved(h):
            parts = (law.log_probs + h * noise).split(list(law.sizes), 1)
            return CategoricalLaw(torch.cat([part.log_softmax(1) for part in parts], 1), law.sizes)

        tangent = (moved(1e-6).log_probs - law.log_probs) / 1e-6
    quadratic = (tangent * getattr(law, f"{metric}_product")(tangent)).sum(1)
    distance = law.wasserstein_distance if metric == "wasserstein" else lambda other: 2 * law.kl_divergence(other)
    h = 1e-3
    torch.testing.assert_close(distance(moved(h)) / h**2, quadratic, rtol=1e-2, atol=1e-9)


def test_two_valued_factors_have_the_closed_form_of_a_coin():
    """For two actions L(p)^+ is constant: the squared length of a change dp is 2 dp^2."""
    p = torch.tensor([[0.3, 0.7]], dtype=torch.float64)
    change = torch.tensor([[-0.1, 0.1]], dtype=torch.float64)
    assert (change * graph_laplacian_solve(p, change)).sum().item() == pytest.approx(2 * 0.1**2)


def test_factors_add_up():
    p, q = categorical(seed=0), categorical(seed=1)
    factors = [tuple(CategoricalLaw(part, (part.shape[1],)) for part in law.log_probs.split([3, 2], 1)) for law in (p, q)]
    pairs = list(zip(*factors, strict=True))
    assert p.spread().item() == pytest.approx(sum(factor.spread().item() for factor in factors[0]))
    for distance in ("total_variation", "wasserstein_distance", "kl_divergence"):
        parts = [getattr(a, distance)(b) for a, b in pairs]
        torch.testing.assert_close(getattr(p, distance)(q), parts[0] + parts[1])


@pytest.mark.parametrize("make", [gaussian, categorical])
def test_a_detached_law_has_no_graph(make):
    law = make()
    attached = replace(law, **{name: part.requires_grad_() for name, part in vars(law).items() if torch.is_tensor(part)})
    assert not any(part.requires_grad for part in vars(attached.detach()).values() if torch.is_tensor(part))


def test_selected_laws_weigh_the_spread_as_before():
    law, other = (replace(gaussian(seed=seed), std_weight=4.0) for seed in (0, 1))
    rows = torch.tensor([3, 0])
    torch.testing.assert_close(
        law.select(rows).wasserstein_distance(other.select(rows)), law.wasserstein_distance(other)[rows]
    )


def test_the_categorical_distance_is_symmetric():
    law, other = categorical(seed=0), categorical(seed=1)
    torch.testing.assert_close(law.wasserstein_distance(other), other.wasserstein_distance(law))


def test_a_factor_without_a_choice_adds_nothing():
    law = categorical(sizes=(3,))
    padded = CategoricalLaw(torch.cat([law.log_probs, torch.zeros(4, 1)], dim=1), (3, 1))
    torch.testing.assert_close(padded.spread(), law.spread())
    torch.testing.assert_close(padded.wasserstein_distance(padded), torch.zeros(4, dtype=torch.float64))
