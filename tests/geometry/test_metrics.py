import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parameters_to_vector

from sb3_wng.geometry import (
    BehaviorSample,
    EuclideanMetric,
    FactoredMetric,
    GaussianKernel,
    GaussianLaw,
    GaussNewtonMetric,
    Pathwise,
    ScoreFunction,
    SumMetric,
    random_points,
    stratified_coordinates,
    vector_jacobian_products,
    wasserstein_factor,
)


class Policy(nn.Module):
    """Mean network and free log-std, as SB3's MlpPolicy."""

    def __init__(self, n_obs=3, d=2, hidden=5, log_std=0.0, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(n_obs, hidden), nn.Tanh())
        self.head = nn.Linear(hidden, d)
        self.log_std = nn.Parameter(torch.full((d,), log_std))
        self.double()

    def law(self, obs):
        mean = self.head(self.body(obs))
        return GaussianLaw(mean, self.log_std.exp().expand_as(mean))


def observations(n=50, n_obs=3, seed=0):
    return torch.randn(n, n_obs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(metric, p):
    return torch.stack([metric.product(row) for row in torch.eye(p, dtype=torch.float64)])


def policy_metric(policy, obs, kind="wasserstein", **kwargs):
    law = policy.law(obs)
    return GaussNewtonMetric(law.coordinates, list(policy.parameters()), getattr(law, f"{kind}_product"), **kwargs)


def gaussian_sample(d, n=4000, std=0.5, seed=0):
    """N(theta, std^2 I): theta = (mean, log_std), pathwise."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(d, generator=generator, dtype=torch.float64).requires_grad_()
    log_std = torch.full((d,), np.log(std), dtype=torch.float64).requires_grad_()
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    embeddings = mean + log_std.exp() * noise
    return BehaviorSample(embeddings, Pathwise(embeddings, [mean, log_std])), [mean, log_std]


def closed_form_direction(grad, d, std, damping):
    metric = torch.cat([torch.ones(d, dtype=torch.float64), torch.full((d,), std**2, dtype=torch.float64)])
    return grad / (metric + damping)


@pytest.mark.parametrize("kind", ["wasserstein", "fisher"])
def test_gauss_newton_product_is_the_dense_metric(kind):
    policy, obs = Policy(), observations()
    p = sum(q.numel() for q in policy.parameters())
    law = policy.law(obs)
    jacobian = torch.stack(
        [
            torch.stack(
                [
                    parameters_to_vector(
                        torch.autograd.grad(
                            law.coordinates[s, k],
                            policy.parameters(),
                            retain_graph=True,
                            materialize_grads=True,
                            allow_unused=True,
                        )
                    )
                    for k in range(4)
                ]
            )
            for s in range(len(obs))
        ]
    )
    std = law.std[0].detach()
    blocks = {"wasserstein": torch.eye(4, dtype=torch.float64), "fisher": torch.diag(torch.cat([std**-2, 2 * std**-2]))}
    expected = torch.einsum("skp,kl,slq->pq", jacobian, blocks[kind], jacobian) / len(obs)
    torch.testing.assert_close(dense(policy_metric(policy, obs, kind), p), expected, rtol=1e-9, atol=1e-9)


def test_fisher_metric_is_the_covariance_of_the_score():
    policy, obs = Policy(log_std=-0.5), observations(1)
    law = policy.law(obs.expand(100_000, -1))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        actions = law.mean + law.std * torch.randn(law.mean.shape, generator=generator, dtype=torch.float64)
    # score in coordinates, pulled back: exact Jacobian, Monte-Carlo expectation
    log_prob = torch.distributions.Normal(law.mean, law.std).log_prob(actions).sum()
    scores = torch.cat(torch.autograd.grad(log_prob, [law.mean, law.std]), 1)
    covariance = scores.T @ scores / len(scores)
    block = torch.stack(
        [law.fisher_product(row.expand(1, -1).repeat(len(obs), 1))[0] for row in torch.eye(4, dtype=torch.float64)]
    )
    torch.testing.assert_close(covariance, block, rtol=0.03, atol=0.05)


def test_gauss_newton_solve_is_the_damped_dense_solve():
    policy, obs = Policy(), observations()
    p = sum(q.numel() for q in policy.parameters())
    metric = policy_metric(policy, obs, cg_max_steps=200, cg_tolerance=1e-13)
    grad = torch.randn(p, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.linalg.solve(dense(metric, p) + 0.1 * torch.eye(p, dtype=torch.float64), grad)
    torch.testing.assert_close(metric.solve(grad, 0.1), expected, rtol=1e-9, atol=1e-9)


def test_factored_metric_agrees_with_its_dense_form_and_ranks_itself():
    factor = torch.randn(4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factor[3] = factor[2]
    metric = FactoredMetric(factor)
    torch.testing.assert_close(dense(metric, 9), factor.T @ factor)
    assert FactoredMetric(torch.eye(5, 9)).effective_rank() == pytest.approx(5)
    assert 1 < metric.effective_rank() < 3
    assert FactoredMetric(torch.zeros(2, 3)).effective_rank() == 0


def test_diagonal_damping_weighs_each_parameter_by_its_column():
    factor = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grad = torch.ones(4, dtype=torch.float64)
    expected = torch.linalg.solve(factor.T @ factor + 0.3 * torch.diag(factor.norm(dim=0) + 1e-8), grad)
    torch.testing.assert_close(FactoredMetric(factor, diagonal_damping=True).solve(grad, 0.3), expected, rtol=1e-9, atol=1e-9)


def test_euclidean_metric_leaves_the_gradient_its_direction():
    grad = torch.arange(3.0)
    torch.testing.assert_close(EuclideanMetric().solve(grad, 1.0), grad / 2)


def test_metric_predicts_the_wasserstein_distance_of_a_small_move():
    """W2^2(q_theta, q_theta+u) / u^T G u -> 1 (Moskovitz et al. 2021, Prop. 1), by POT, for a Gaussian law."""
    policy, obs = Policy(log_std=-0.3), observations(20)
    p = sum(q.numel() for q in policy.parameters())
    u = torch.randn(p, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    quadratic = (u @ policy_metric(policy, obs).product(u)).item()
    before, start = policy.law(obs).detach(), parameters_to_vector(policy.parameters()).detach().clone()
    ratios = []
    for h in (1e-1, 1e-3):
        nn.utils.vector_to_parameters(start + h * u, policy.parameters())
        after = policy.law(obs).detach()
        distances = [
            ot.gaussian.bures_wasserstein_distance(
                before.mean[s].numpy(),
                after.mean[s].numpy(),
                *(np.diag(law.std[s].numpy() ** 2) for law in (before, after)),
            )
            ** 2
            for s in range(len(obs))
        ]
        ratios.append(np.mean(distances) / (h**2 * quadratic))
    assert abs(ratios[1] - 1) < 1e-2
    assert abs(ratios[1] - 1) < abs(ratios[0] - 1)


def test_penalised_argmax_points_along_the_natural_direction_for_a_large_penalty():
    """Moskovitz et al. 2021, Prop. 2."""
    policy, obs = Policy(), observations(30)
    start = parameters_to_vector(policy.parameters()).detach().clone()
    weight = torch.randn(30, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    old = policy.law(obs).detach()
    beta, ridge = 1e5, 1e-2

    def objective():
        law = policy.law(obs)
        u = parameters_to_vector(policy.parameters()) - start
        penalty = old.wasserstein_distance(law).mean() + ridge * u @ u
        return (weight * law.mean.sin()).mean() + law.std.sum(1).mean() - beta / 2 * penalty

    grad = parameters_to_vector(torch.autograd.grad(objective(), list(policy.parameters())))
    direction = policy_metric(policy, obs, cg_max_steps=200, cg_tolerance=1e-12).solve(grad, ridge)
    optimizer = torch.optim.LBFGS(
        policy.parameters(),
        lr=1,
        max_iter=300,
        tolerance_grad=1e-14,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        loss = -objective()
        loss.backward()
        return loss

    optimizer.step(closure)
    u = parameters_to_vector(policy.parameters()).detach() - start
    assert torch.cosine_similarity(u, direction, dim=0) >= 0.999


def test_natural_step_does_not_depend_on_how_the_last_layer_is_parametrised():
    """Rotating and scaling the last layer changes the Euclidean step's effect, not the natural one's, as damping -> 0."""
    obs = observations(200)
    weight = torch.randn(200, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    matrix = torch.tensor([[3.0, 1.0], [-2.0, 0.5]], dtype=torch.float64)

    def effect(parametrise, damping):
        policy = Policy(hidden=3)
        head = nn.Linear(3, 2).double()
        with torch.no_grad():
            head.weight.copy_(torch.linalg.solve(matrix, policy.head.weight) if parametrise else policy.head.weight)
            head.bias.copy_(torch.linalg.solve(matrix, policy.head.bias) if parametrise else policy.head.bias)
        parameters = list(head.parameters())
        features = policy.body(obs).detach()
        mean = head(features) @ matrix.T if parametrise else head(features)
        grad = parameters_to_vector(torch.autograd.grad((weight * mean).mean(), parameters, retain_graph=True))
        metric = GaussNewtonMetric(mean, parameters, lambda t: t, cg_max_steps=500, cg_tolerance=1e-14)
        step = metric.solve(grad, damping) if damping is not None else grad
        u = step.split([6, 2])
        change = features @ u[0].view(2, 3).T + u[1]
        return change @ matrix.T if parametrise else change

    torch.testing.assert_close(effect(True, 1e-10), effect(False, 1e-10), rtol=1e-4, atol=1e-6)
    assert torch.cosine_similarity(effect(True, None).flatten(), effect(False, None).flatten(), dim=0) < 0.99


def test_shrinking_the_spread_scales_fishers_mean_step_by_the_variance_and_leaves_wassersteins():
    obs = observations(1)
    steps = {}
    for kind in ("wasserstein", "fisher"):
        for log_std in (0.0, np.log(0.1)):
            policy = Policy(log_std=log_std)
            parameters = list(policy.parameters())
            objective = policy.law(obs).mean @ torch.tensor([1.0, -2.0], dtype=torch.float64)
            grads = torch.autograd.grad(objective.sum(), parameters, allow_unused=True, materialize_grads=True)
            metric = policy_metric(policy, obs, kind, cg_max_steps=200, cg_tolerance=1e-14)
            steps[kind, log_std] = metric.solve(parameters_to_vector(grads), 1e-9)
    torch.testing.assert_close(steps["wasserstein", 0.0], steps["wasserstein", np.log(0.1)], rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(steps["fisher", np.log(0.1)], 0.01 * steps["fisher", 0.0], rtol=1e-5, atol=1e-9)


# The kernelised estimator -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [3, 6])
def test_kernel_direction_of_a_gaussian_is_the_closed_form(d):
    sample, _ = gaussian_sample(d)
    grad = torch.randn(2 * d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    factor = wasserstein_factor(sample, d + d * (d + 1) // 2, log_bandwidth=1.0, generator=torch.Generator().manual_seed(2))
    direction = FactoredMetric(factor).solve(grad, 1e-4)
    assert torch.cosine_similarity(direction, closed_form_direction(grad, d, 0.5, 1e-4), dim=0) >= 0.99


def test_float32_networks_get_the_same_kernel_direction():
    d = 3
    sample, parameters = gaussian_sample(d)
    small = [q.detach().float().requires_grad_() for q in parameters]
    noise = (sample.embeddings - parameters[0]).detach() / 0.5
    embeddings = small[0] + small[1].exp() * noise.float()
    grad = torch.randn(2 * d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    factors = [
        wasserstein_factor(s, 9, 1.0, torch.Generator().manual_seed(2))
        for s in (sample, BehaviorSample(embeddings, Pathwise(embeddings, small)))
    ]
    assert factors[1].dtype == torch.float32
    directions = [FactoredMetric(factor).solve(grad.to(factor.dtype), 1e-3).double() for factor in factors]
    assert torch.cosine_similarity(*directions, dim=0) >= 0.999


def test_pathwise_and_score_function_jacobians_agree_within_monte_carlo_error():
    d, n = 2, 200_000
    generator = torch.Generator().manual_seed(0)
    mean = torch.zeros(d, dtype=torch.float64, requires_grad=True)
    std = torch.ones(d, dtype=torch.float64, requires_grad=True)
    x = mean + std * torch.randn(n, d, generator=generator, dtype=torch.float64)
    log_prob = torch.distributions.Normal(mean, std).log_prob(x.detach()).sum(1)
    values = torch.stack([x.detach().sin().sum(1), x.detach().square().sum(1)])
    gradients = torch.stack([x.detach().cos(), 2 * x.detach()])
    pathwise = Pathwise(x, [mean, std])(values, gradients)
    score = ScoreFunction(log_prob, [mean, std])(values, gradients)
    torch.testing.assert_close(pathwise, score, rtol=0, atol=0.03)
    exact = torch.tensor([[np.exp(-0.5)] * 2 + [0, 0], [0, 0, 2, 2]], dtype=torch.float64)
    torch.testing.assert_close(pathwise, exact, rtol=0, atol=0.03)


def test_the_score_functions_baseline_does_not_shrink_the_estimate():
    """With n = 2 samples, centring by the batch mean would halve the expectation."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    estimates = []
    for pair in torch.randn(4000, 2, generator=generator, dtype=torch.float64):
        log_prob = -0.5 * (pair - mean).square()
        estimates.append(ScoreFunction(log_prob, [mean])(pair[None], pair[None, :, None])[0, 0])
    assert torch.stack(estimates).mean().item() == pytest.approx(1.0, abs=0.1)  # E[x] has gradient one in the mean


def test_eq_12_as_printed_holds_for_pathwise_jacobians_and_fails_for_score_functions():
    """The factor is right where L is rank deficient and J is not in its range."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    x = mean + torch.randn(3, 1, generator=generator, dtype=torch.float64)  # 3 samples, 8 functions: L has rank <= 3
    points = torch.randn(8, 1, generator=generator, dtype=torch.float64)
    coordinates = torch.zeros(8, dtype=torch.long)
    kernel = GaussianKernel(1.0)
    values, gradients = (
        kernel.basis(x.detach(), points, coordinates),
        kernel.basis_gradient(x.detach(), points, coordinates),
    )
    laplacian = gradients.flatten(1) @ gradients.flatten(1).T / 3
    grad, damping = torch.ones(1, dtype=torch.float64), 0.1
    log_prob = -0.5 * (x.detach() - mean).square().sum(1)
    errors = {}
    for name, estimate in {"pathwise": Pathwise(x, [mean]), "score": ScoreFunction(log_prob, [mean])}.items():
        jacobian = estimate(values, gradients)
        printed = (
            grad - jacobian.T @ torch.linalg.pinv(jacobian @ jacobian.T + damping * laplacian, rtol=1e-10) @ jacobian @ grad
        ) / damping
        metric = jacobian.T @ torch.linalg.pinv(laplacian, rtol=1e-10) @ jacobian
        exact = torch.linalg.solve(metric + damping * torch.eye(1, dtype=torch.float64), grad)
        errors[name] = ((printed - exact) / exact).abs().item()
    assert errors["pathwise"] < 1e-6
    assert errors["score"] > 0.1


@pytest.mark.parametrize("seed", range(3))
def test_the_factor_reproduces_j_pinv_l_j(seed):
    sample, _ = gaussian_sample(2, n=60, seed=seed)
    factor = wasserstein_factor(sample, 6, 0.0, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    x = sample.embeddings.detach()
    points = x[random_points(x, 6, generator)]
    coordinates = stratified_coordinates(6, 2, generator)
    kernel = GaussianKernel.from_samples(points, x)
    gradients = kernel.basis_gradient(x, points, coordinates)
    jacobian = sample.expectation_gradient(kernel.basis(x, points, coordinates), gradients)
    expected = jacobian.T @ torch.linalg.pinv(gradients.flatten(1) @ gradients.flatten(1).T / 60, rtol=1e-12) @ jacobian
    torch.testing.assert_close(factor.T @ factor, expected, rtol=1e-6, atol=1e-8)


def test_a_context_is_compared_but_not_transported():
    """Two states with swapped means: the pooled law does not change, the law given the state does."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    state = torch.tensor([[-1.0], [1.0]], dtype=torch.float64).repeat(500, 1)
    x = theta * state + torch.randn(1000, 1, generator=generator, dtype=torch.float64)
    lengths = []
    for context in (None, state):
        sample = BehaviorSample(x, Pathwise(x, [theta]), context)
        lengths.append(wasserstein_factor(sample, 100, 1.0, torch.Generator().manual_seed(1)).square().sum().item())
    pooled, conditional = lengths
    assert pooled < 0.3  # truth: 0 to second order
    assert conditional == pytest.approx(1.0, abs=0.3)  # truth: E|d mean / d theta|^2 = 1


@pytest.mark.parametrize("n_states", [2, 500])
def test_scores_given_a_context_do_not_magnify_what_varies_with_the_context_alone(n_states):
    """Wide kernels have combinations of functions that vary with little else: the metric was up to 200 times the true one."""
    theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        state = torch.randn(n_states, 1, generator=generator, dtype=torch.float64).repeat(500 // n_states, 1)
        state = (state - state.mean()) / state.std()
        x = torch.randn(500, 1, generator=generator, dtype=torch.float64)
        scores = ScoreFunction(-0.5 * (x - theta * state).square().sum(dim=1), [theta])
        factor = wasserstein_factor(BehaviorSample(x, scores, state), 50, 1.0, generator)
        assert 0.5 < factor.square().sum().item() < 1.7  # truth: E|d mean / d theta|^2 = 1


def test_the_factor_is_a_function_of_its_inputs():
    sample, _ = gaussian_sample(2, n=50)
    factors = [wasserstein_factor(sample, 8, generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*factors)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 20),
    d=st.integers(1, 5),
    n_basis=st.integers(1, 30),
    log_scale=st.floats(-15, 15),
    kind=st.sampled_from(["spread", "identical", "one dimension", "two points"]),
    log_bandwidth=st.floats(-3, 3),
    seed=st.integers(0, 2**31 - 1),
)
def test_the_factor_is_finite_for_any_samples(n, d, n_basis, log_scale, kind, log_bandwidth, seed):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.zeros(d, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    if kind == "identical":
        noise = noise[:1].expand(n, d)
    elif kind == "one dimension":
        noise = noise * torch.eye(d, dtype=torch.float64)[0]
    elif kind == "two points":
        noise = noise[:2].repeat(n, 1)[:n]
    x = 10.0**log_scale * (mean + noise)
    factor = wasserstein_factor(BehaviorSample(x, Pathwise(x, [mean])), n_basis, log_bandwidth, generator)
    assert torch.isfinite(factor).all()
    direction = FactoredMetric(factor).solve(torch.ones(d, dtype=torch.float64), 0.1 * 10.0 ** (2 * log_scale))
    assert torch.isfinite(direction).all()
    assert direction.sum() > 0


@pytest.mark.parametrize(
    ("embeddings", "n_basis", "message"),
    [
        (torch.zeros(4, 2), 0, "n_basis must be >= 1"),
        (torch.zeros(1, 2), 3, "at least 2 samples"),
        (torch.full((4, 2), float("nan")), 3, "non-finite"),
    ],
)
def test_the_factor_refuses_what_it_cannot_use(embeddings, n_basis, message):
    with pytest.raises(ValueError, match=message):
        wasserstein_factor(BehaviorSample(embeddings, Pathwise(embeddings, [])), n_basis)


def test_batched_jacobian_equals_the_loop_of_backward_passes():
    policy, obs = Policy(), observations(30)
    mean = policy.law(obs).mean
    cotangents = torch.randn(6, 30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = [
        torch.autograd.grad(mean, list(policy.parameters()), c, retain_graph=True, allow_unused=True, materialize_grads=True)
        for c in cotangents
    ]
    expected = torch.stack([parameters_to_vector(row) for row in rows])
    torch.testing.assert_close(vector_jacobian_products(mean, list(policy.parameters()), cotangents), expected)


def test_a_sum_of_metrics_is_the_sum_of_their_matrices():
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    metric = SumMetric([FactoredMetric(factor) for factor in factors], cg_max_steps=20, cg_tolerance=1e-12)
    expected = sum(factor.T @ factor for factor in factors)
    torch.testing.assert_close(dense(metric, 4), expected)
    grad = torch.randn(4, generator=generator, dtype=torch.float64)
    damped = expected + 0.3 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(metric.solve(grad, 0.3), torch.linalg.solve(damped, grad))


def test_contexts_have_the_bandwidth_that_is_asked_for():
    generator = torch.Generator().manual_seed(0)
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(200, 2, generator=generator, dtype=torch.float64) + theta
    context = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    wide, pooled = (
        wasserstein_factor(BehaviorSample(x, Pathwise(x, [theta]), c), 1, 3.0, torch.Generator().manual_seed(0))
        for c in (context, None)
    )
    torch.testing.assert_close(wide, pooled, rtol=1e-2, atol=1e-3)  # all contexts are alike


def test_a_function_at_one_context_does_not_see_another():
    seen = []
    x = torch.randn(100, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    context = torch.tensor([[-1.0], [1.0]], dtype=torch.float64).repeat(50, 1)
    sample = BehaviorSample(x, lambda values, gradients: seen.extend([values, gradients[:, :, 0]]) or values, context)
    wasserstein_factor(sample, 1, -1.5, torch.Generator().manual_seed(1))
    for part in seen:
        sums = part[0].abs().reshape(50, 2).sum(dim=0)
        assert sums.min() < 1e-6 * sums.max()


def test_the_score_of_a_single_sample_says_nothing():
    theta = torch.zeros(1, requires_grad=True)
    assert ScoreFunction(theta * 1.0, [theta])(torch.ones(3, 1), torch.zeros(3, 1, 1)).tolist() == [[0.0]] * 3
