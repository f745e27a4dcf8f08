"""Potentials learnt from a stream of samples end where POT's solvers end."""

import numpy as np
import ot
import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal

from sb3_wng.geometry import AlternatingDual, KernelDual, SemiDiscreteDual, SinkhornDual
from sb3_wng.geometry.transport import cost_matrix

REG = 0.3


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def entropic_value(costs, first, second, reg):
    """min <P, C> + reg KL(P | first x second), and the first law's potential."""
    plan, log = ot.bregman.sinkhorn_log(first, second, costs, reg, numItermax=20_000, stopThr=1e-11, log=True)
    divergence = (plan * (plan / (first[:, None] * second)).log()).sum()
    return ((plan * costs).sum() + reg * divergence).item(), reg * (log["log_u"] - first.log())


def uniform(n):
    return torch.full((n,), 1 / n, dtype=torch.float64)


def centred(potential):
    return potential - potential.mean()


def test_the_kernel_dual_approaches_the_entropic_optimum(generator):
    x = torch.rand((6, 1), generator=generator, dtype=torch.float64)
    y = torch.rand((5, 1), generator=generator, dtype=torch.float64) + 1
    dual = KernelDual(1, REG, rate=0.6, width=0.3, max_centers=20_000)
    for _ in range(120):
        rows = torch.randint(6, (50,), generator=generator), torch.randint(5, (50,), generator=generator)
        dual.update(x[rows[0]], y[rows[1]])
    value, potential = entropic_value(torch.cdist(x, y), uniform(6), uniform(5), REG)
    assert value - 0.05 < dual.value(x, y).item() <= value + 1e-6
    torch.testing.assert_close(centred(dual.signal(x)), centred(potential), rtol=0, atol=0.1)


def test_the_kernel_dual_forgets_its_oldest_centres_and_survives_a_save(generator):
    dual = KernelDual(2, max_centers=12)
    for _ in range(3):
        dual.update(torch.rand((5, 2), generator=generator), torch.rand((5, 2), generator=generator))
    assert len(dual.coefficients) == len(dual.x) == len(dual.y) == 12
    other = KernelDual(2, max_centers=12)
    other.load_state_dict(dual.state_dict())
    points = torch.rand((4, 2), generator=generator)
    torch.testing.assert_close(other.signal(points), dual.signal(points), rtol=0, atol=0)


@pytest.fixture
def histograms(generator):
    costs = torch.rand((5, 4), generator=generator, dtype=torch.float64)
    first = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1], dtype=torch.float64)
    second = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    return costs, first, second


def visits(histogram, n=100):
    return torch.repeat_interleave(torch.arange(len(histogram)), (histogram * n).round().long())


def test_the_sinkhorn_dual_is_the_derivative_of_the_distance(histograms):
    costs, first, second = histograms
    dual = SinkhornDual(costs, second, REG, smoothing=1e-9)
    dual.update(visits(first))
    step = 1e-5
    for i in range(len(first)):
        # moving mass from all atoms in proportion to atom i
        moved = (1 - step) * first
        moved[i] += step
        change = entropic_value(costs, moved, second, REG)[0] - entropic_value(costs, first, second, REG)[0]
        # the potential of the relative entropy differs by -eps log r_i - eps
        potential = dual.potential - REG * first.log()
        expected = potential[i] - first @ potential
        assert change / step == pytest.approx(expected.item(), abs=2e-3)


def test_an_unvisited_atom_keeps_a_finite_potential(histograms):
    costs, _, second = histograms
    dual = SinkhornDual(costs, second, 0.05)
    dual.update(torch.tensor([0, 0, 1]))
    assert torch.isfinite(dual.signal(torch.arange(5))).all()
    assert dual.potential.mean().abs() < 1e-12


def test_the_alternating_dual_ends_at_sinkhorns_potentials(histograms):
    costs, first, second = histograms
    dual = AlternatingDual(costs, REG, rate=0.2)
    rows, columns = visits(first), visits(second)
    for _ in range(3000):
        dual.update(rows, columns)
    _, log = ot.bregman.sinkhorn_log(first, second, costs, REG, stopThr=1e-11, log=True)
    torch.testing.assert_close(centred(dual.signal(torch.arange(5))), centred(REG * log["log_u"]), rtol=0, atol=1e-3)
    plan = ot.sinkhorn(first, second, costs, REG, stopThr=1e-11)
    primal = (plan * costs).sum() + REG * (plan * (plan.log() - 1)).sum()
    torch.testing.assert_close(dual.value(first, second), primal, rtol=1e-4, atol=1e-5)


def test_the_alternating_dual_learns_from_single_samples(histograms, generator):
    costs, first, second = histograms
    dual, average = AlternatingDual(costs, REG, rate=0.02), torch.zeros(5, dtype=torch.float64)
    for step in range(4000):
        dual.update(first.multinomial(1, generator=generator), second.multinomial(1, generator=generator))
        if step >= 2000:
            average += dual.a / 2000
    _, log = ot.bregman.sinkhorn_log(first, second, costs, REG, stopThr=1e-11, log=True)
    torch.testing.assert_close(centred(average), centred(REG * log["log_u"]), rtol=0, atol=0.1)


@pytest.mark.parametrize("cost", ["euclidean", "sqeuclidean"])
def test_the_semi_discrete_dual_approaches_the_entropic_optimum(generator, cost):
    x = torch.rand((40, 2), generator=generator, dtype=torch.float64)
    atoms = torch.rand((4, 2), generator=generator, dtype=torch.float64) + 0.5
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    dual = SemiDiscreteDual(atoms, weights, 0.1, cost=cost)
    for _ in range(2000):
        dual.update(x[torch.randint(40, (5,), generator=generator)])
    costs = torch.cdist(x, atoms) if cost == "euclidean" else torch.cdist(x, atoms).square()
    value, potential = entropic_value(costs, uniform(40), weights, 0.1)
    assert value - 2e-3 < dual.signal(x).mean().item() <= value + 1e-9
    torch.testing.assert_close(centred(dual.signal(x)), centred(potential), rtol=0, atol=0.02)


def test_a_single_atom_makes_the_distance_the_mean_cost(generator):
    x, atom = torch.rand((20, 3), generator=generator), torch.ones(1, 3)
    torch.testing.assert_close(SemiDiscreteDual(atom).signal(x), torch.cdist(x, atom).flatten())


BAD = {
    "regularisation": (lambda: KernelDual(2, entropic_reg=-1.0), "entropic_reg"),
    "rate": (lambda: AlternatingDual(torch.ones(2, 2), rate=0), "rate"),
    "cost": (lambda: KernelDual(2, cost="taxi"), "cost must be"),
    "costs": (lambda: SinkhornDual(torch.full((2, 2), torch.nan), torch.ones(2)), "costs must be"),
    "target": (lambda: SinkhornDual(torch.ones(2, 3), torch.ones(2)), "target must be 3"),
    "empty target": (lambda: SinkhornDual(torch.ones(2, 3), torch.zeros(3)), "not all zero"),
    "weights": (lambda: SemiDiscreteDual(torch.ones(2, 3), torch.tensor([1.0, -1.0])), "weights must be 2"),
    "pairs": (lambda: KernelDual(1).update(torch.ones(2, 1), torch.ones(3, 1)), "pairs"),
    "dimension": (lambda: SemiDiscreteDual(torch.ones(2, 3)).update(torch.ones(4, 2)), "same dimension"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_solved_is_refused(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()


# --- With policies: the potential of visited behaviour, by the score function ---

ATOMS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
TARGET = torch.tensor([0.05, 0.15, 0.1, 0.7], dtype=torch.float64)


def discrete_policies():
    """Logits of four atoms: one parameter each, or the outputs of a network."""
    table = torch.zeros(4, requires_grad=True)
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
    return {"tabular": ([table], lambda: table), "neural": (list(network.parameters()), lambda: network(torch.ones(3)))}


def continuous_policies():
    """Means of a Gaussian in the plane, likewise."""
    mean = torch.full((2,), -1.0, requires_grad=True)
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    return {"tabular": ([mean], lambda: mean), "neural": (list(network.parameters()), lambda: network(torch.ones(3)) - 1)}


@pytest.mark.parametrize("policy", ["tabular", "neural"])
@pytest.mark.parametrize("estimator", ["kernel", "sinkhorn", "alternating", "semi-discrete"])
def test_every_estimators_signal_leads_a_policy_to_the_target_law(estimator, policy, generator):
    torch.manual_seed(0)
    costs = cost_matrix(ATOMS, ATOMS, "euclidean")
    is_discrete = estimator in ("sinkhorn", "alternating")
    parameters, output = (discrete_policies() if is_discrete else continuous_policies())[policy]
    optimizer = torch.optim.Adam(parameters, lr=0.04 if policy == "tabular" else 0.01)
    dual = {
        "kernel": lambda: KernelDual(2, entropic_reg=0.5, rate=0.5, max_centers=1000),
        "sinkhorn": lambda: SinkhornDual(costs, TARGET, 0.1),
        "alternating": lambda: AlternatingDual(costs, 0.1, 0.05),
        "semi-discrete": lambda: SemiDiscreteDual(ATOMS, TARGET, 0.1),
    }[estimator]()

    def distance():
        """Exact W1 between the policy's law and the target's atoms."""
        if is_discrete:
            return ot.emd2(output().softmax(0).detach().double().numpy(), TARGET.numpy(), costs.numpy())
        points = output().detach().double() + 0.3 * torch.randn((400, 2), generator=generator, dtype=torch.float64)
        return ot.emd2(np.full(400, 1 / 400), TARGET.numpy(), cost_matrix(points, ATOMS, "euclidean").numpy())

    before = distance()
    for _ in range(80):
        law = Categorical(logits=output()) if is_discrete else Independent(Normal(output(), 0.3), 1)
        for _ in range(1 if estimator == "sinkhorn" else 5):  # the others follow the law: they must be faster than it
            behavior = law.sample((64,))
            target = torch.multinomial(TARGET, 64, replacement=True, generator=generator)
            samples = {"kernel": (behavior, ATOMS[target]), "alternating": (behavior, target)}.get(estimator, (behavior,))
            dual.update(*samples)
        signal = dual.signal(behavior)
        optimizer.zero_grad()
        (law.log_prob(behavior) * (signal - signal.mean())).mean().backward()
        optimizer.step()
    assert distance() < 0.5 * before


@pytest.mark.parametrize("indices", [[], [0, 3], [-1]], ids=str)
def test_visits_must_be_of_atoms_that_there_are(indices):
    visited, costs = torch.tensor(indices, dtype=torch.long), torch.ones(3, 3)
    with pytest.raises(ValueError, match="indices must be those of one or more of the 3 atoms, from 0 to 2"):
        SinkhornDual(costs, torch.ones(3)).update(visited)
    with pytest.raises(ValueError, match="indices must be those of one or more of the 3 atoms, from 0 to 2"):
        AlternatingDual(costs).update(torch.arange(3), visited)


@pytest.mark.parametrize(
    ("make", "n_arguments"),
    [(lambda: KernelDual(2), 2), (lambda: SemiDiscreteDual(ATOMS), 1)],
    ids=["kernel", "semi-discrete"],
)
def test_a_saved_dual_learns_on_where_it_was(make, n_arguments, generator):
    batches = torch.randn((4, n_arguments, 5, 2), generator=generator, dtype=torch.float64)
    whole, resumed = make(), make()
    for batch in batches[:3]:
        whole.update(*batch)
    resumed.load_state_dict(whole.state_dict())
    for dual in (whole, resumed):
        dual.update(*batches[3])
    torch.testing.assert_close(resumed.signal(batches[0, 0]), whole.signal(batches[0, 0]), rtol=0, atol=0)


def test_steps_that_are_far_too_long_overflow_nothing():
    kernel, alternating = KernelDual(1, entropic_reg=0.01, rate=100.0), AlternatingDual(torch.zeros(2, 2), 0.01, rate=100.0)
    for _ in range(5):
        kernel.update(torch.zeros(3, 1), torch.ones(3, 1))
        alternating.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert torch.isfinite(kernel.signal(torch.zeros(1, 1))).all()
    assert torch.isfinite(alternating.signal(torch.arange(2))).all()


def test_the_target_is_a_law_however_it_is_given():
    costs = torch.cdist(ATOMS, ATOMS)
    target = torch.tensor([1.0, 2.0, 5.0, 2.0])
    torch.testing.assert_close(SinkhornDual(costs, target).target, SinkhornDual(costs, 100 * target).target)
    dual = SinkhornDual(costs, torch.tensor([0.0, 0.5, 0.3, 0.2]))  # an atom without mass
    dual.update(torch.arange(4))
    assert (dual.target > 0).all()
    assert torch.isfinite(dual.potential).all()
    with pytest.raises(ValueError, match="target must be 4 finite numbers >= 0"):
        SinkhornDual(costs, torch.tensor([1.0, -0.5, 1.0, 1.0]))


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 3.0, 4.0])], ids=["equal", "unequal"])
def test_weights_of_atoms_are_normalised(weights, generator):
    x = torch.randn((6, 2), generator=generator, dtype=torch.float64)
    duals = SemiDiscreteDual(ATOMS, weights), SemiDiscreteDual(ATOMS, 7 * (torch.ones(4) if weights is None else weights))
    for dual in duals:
        dual.update(x)
        torch.testing.assert_close(dual.weights.sum().item(), 1.0)
    torch.testing.assert_close(duals[0].signal(x), duals[1].signal(x))


def test_the_alternating_dual_starts_with_a_plan_of_mass_one():
    assert AlternatingDual(torch.zeros(30, 40), 0.1)._plan().sum().item() == pytest.approx(1)


def test_the_signal_of_the_semi_discrete_dual_is_that_of_its_averaged_potential(generator):
    x = torch.randn((5, 2), generator=generator, dtype=torch.float64)
    dual = SemiDiscreteDual(ATOMS, torch.tensor([1.0, 2.0, 3.0, 4.0]), 0.1)
    for _ in range(4):
        dual.update(torch.randn((5, 2), generator=generator, dtype=torch.float64))
    mass = dual.weights * ((dual.average - torch.cdist(x, ATOMS)) / 0.1).exp()
    torch.testing.assert_close(dual.signal(x), dual.weights @ dual.average - 0.1 * mass.sum(dim=1).log())
