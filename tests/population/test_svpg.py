"""What SVPG's updates do: Stein's direction on policy gradients, its limits, and nothing else."""

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from sb3_wng import SVPG
from sb3_wng.behavior import StateVisitation, Trajectories, make_embedding
from sb3_wng.envs import make_batched
from sb3_wng.geometry import kernel_repulsion, median_bandwidth, particle_kernel, squared_distances
from sb3_wng.population import AnnealedTemperature, CyclicalTemperature, behavior_repulsion, population_direction


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def taken_direction(model):
    """What the next update of a filled population hands to Adam."""
    taken = []
    model._adam_step = lambda direction: taken.append(direction.clone())
    model.train()
    return taken[0]


def test_one_particle_ascends_its_return_over_the_temperature(small, fill, gradients):
    model = fill(small("pg", n_particles=1, temperature=4.0))
    gradient = gradients(model)
    torch.testing.assert_close(taken_direction(model), gradient / 4, rtol=1e-4, atol=1e-6)


def test_the_update_is_steins_direction_of_the_particles_gradients(small, fill, gradients):
    model = fill(small("a2c", temperature=4.0, prior_std=2.0, bandwidth="printed"))
    theta = model.policy.theta.clone()
    scores = gradients(model) / 4 - theta / 4
    distances = squared_distances(theta)
    h = median_bandwidth(distances, "printed")
    kernel = particle_kernel(distances, h)
    expected = (kernel.float() @ scores + kernel_repulsion(theta, kernel, h)) / 3
    torch.testing.assert_close(taken_direction(model), expected, rtol=1e-3, atol=1e-5)


def test_gradients_are_those_of_the_particles_own_data(small, fill, gradients):
    """No gradient leaks from particle to particle, and pieces add up to the whole."""
    model = fill(small("pg", n_steps=300))
    computed = gradients(model)
    for row, particle, share in zip(computed, model.particles, model.shares(), strict=True):
        samples = next(share.get())
        advantages = (samples.advantages - samples.advantages.mean()) / (samples.advantages.std() + 1e-8)
        _, log_prob, _ = particle.policy.evaluate_actions(samples.observations, samples.actions)
        grads = torch.autograd.grad((log_prob * advantages).mean(), particle.parameters)
        torch.testing.assert_close(row, torch.cat([g.flatten() for g in grads]), rtol=1e-3, atol=1e-6)
    model.shares()[0].rewards[:] += 1
    model.rollout_buffer.advantages[:, model.columns[0]] *= torch.rand(300, 2).numpy()
    changed = gradients(model)
    assert not torch.allclose(changed[0], computed[0])
    torch.testing.assert_close(changed[1:], computed[1:])


def test_raw_advantages_are_used_where_asked_for(small, fill, gradients):
    one, ten = (fill(small("pg", normalize_advantage=flag)) for flag in (True, False))
    for model in (one, ten):
        model.rollout_buffer.advantages[:] = 10 * one.rollout_buffer.advantages
    assert gradients(ten).norm() > 2 * gradients(one).norm()


@pytest.mark.parametrize("name", ["a2c", "wnpg"])
def test_critics_do_not_enter_the_kernel(small, fill, name):
    model = fill(small(name))
    kernel = population_direction(torch.zeros_like(model.policy.theta), model.policy.theta, "svpg").kernel
    with torch.no_grad():
        for particle in model.particles:
            for parameter in particle.learner.critic_parameters:
                parameter.add_(torch.randn_like(parameter))
    again = population_direction(torch.zeros_like(model.policy.theta), model.policy.theta, "svpg").kernel
    assert torch.equal(kernel, again)


def test_the_order_of_the_particles_does_not_matter():
    scores, theta = normal(5, 7), normal(5, 7, seed=1)
    order = torch.tensor([2, 0, 4, 1, 3])
    for mode in ("svpg", "coupling", "radial", "independent"):
        here = population_direction(scores, theta, mode).direction
        torch.testing.assert_close(population_direction(scores[order], theta[order], mode).direction, here[order])


def test_controls_take_steins_direction_apart():
    scores, theta = normal(5, 7), normal(5, 7, seed=1)
    of = {mode: population_direction(scores, theta, mode) for mode in ("svpg", "coupling", "radial", "independent")}
    kernel = of["svpg"].kernel.float()
    h = median_bandwidth(squared_distances(theta))
    repulsion = kernel_repulsion(theta, of["svpg"].kernel, h)
    torch.testing.assert_close(of["independent"].direction, scores)
    torch.testing.assert_close(of["coupling"].direction, kernel @ scores / 5)
    torch.testing.assert_close(of["svpg"].direction, (kernel @ scores + repulsion) / 5)
    assert of["svpg"].repulsion_ratio == pytest.approx((repulsion.norm() / (kernel @ scores).norm()).item(), rel=1e-4)
    moved = theta.clone()
    moved[1:] += 1
    elsewhere = population_direction(scores, moved, "radial").direction
    torch.testing.assert_close(elsewhere[0], of["radial"].direction[0])
    outward = of["radial"].direction - scores / 5
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(outward, theta), torch.ones(5))
    assert of["coupling"].repulsion_ratio == of["independent"].repulsion_ratio == 0


@pytest.mark.parametrize("name", ["npg", "wnpg"])
def test_natural_particles_precondition_steins_direction_and_keep_their_region(small, fill, name):
    radius = {"target_kl": 0.02} if name == "npg" else {"target_distance": 0.02}
    model = fill(small(name, n_steps=64, temperature=1e-3, algorithm_kwargs={**radius, "cg_max_steps": 30}))
    theta = model.policy.theta.clone()
    model.train()
    written = model.logger.name_to_value
    moved = (model.policy.theta - theta).norm(dim=1)
    assert (moved > 0).any()
    assert 0 < written["train/kl_divergence_loss"] <= 0.1
    assert written["train/is_line_search_success"] > 0


def test_particles_follow_a_schedule_of_their_radius(small, fill):
    """0.08 at the start of training, 0.0008 near its end: steps are a tenth as long."""
    schedule = {"target_distance": lambda progress: 0.08 * progress, "target_kl": None}
    model = fill(small("wnpg", n_particles=1, n_steps=64, algorithm_kwargs=schedule))
    start, lengths = model.policy.theta.clone(), []
    for progress in (1.0, 0.01):
        model.policy.theta.copy_(start)
        particle = model.particles[0]
        particle.begin(model.shares()[0], progress)
        assert particle.natural_step(particle.gradient(), 1.0).accepted
        lengths.append((model.policy.theta - start).norm().item())
    assert 0.05 < lengths[1] / lengths[0] < 0.2


@pytest.mark.parametrize("name", ["npg", "wnpg"])
def test_one_natural_particle_takes_the_algorithms_own_step(small, fill, name):
    """Its direction, a positive multiple of the gradient, is solved, measured and line-searched as by the algorithm alone."""
    model = fill(small(name, n_particles=1, n_steps=64, temperature=7.0))
    particle = model.particles[0]
    particle.begin(model.shares()[0], 1.0)
    start = model.policy.theta.clone()
    batch = particle.learner._policy_batch(particle.rollout)
    unit = particle.learner._unit(batch.old_law)
    particle.learner.natural_gradient.step_rule = particle.learner._make_step_rule(unit)
    particle.learner._policy_step(batch, unit)
    expected = model.policy.theta.clone()
    assert not torch.equal(expected, start)
    model.policy.theta.copy_(start)
    direction = particle.gradient() / 7
    report = particle.natural_step(direction, 1 / 7)
    assert report.accepted
    torch.testing.assert_close(model.policy.theta - start, expected - start, rtol=2e-2, atol=1e-4)


def test_a_line_search_asks_for_what_the_direction_ascends(small, fill):
    """With a direction against the particle's own gradient, going down its surrogate is what is asked for."""
    model = fill(small("wnpg", n_particles=1, n_steps=64))
    particle = model.particles[0]
    particle.begin(model.shares()[0], 1.0)
    report = particle.natural_step(-particle.gradient(), 0.1)
    assert report.accepted
    assert particle.learner.measure(particle.learner._policy_batch(particle.rollout)).objective < 0
    assert report.reduction_ratio == pytest.approx(1, abs=0.3)


def test_a_particle_without_a_finite_gradient_leaves_the_others_alone(small, fill):
    model = fill(small("pg"))
    model.rollout_buffer.advantages[:, model.columns[1]] = np.nan
    model.train()
    assert torch.isfinite(model.policy.theta).all()
    assert model.logger.name_to_value["train/n_unusable_gradients"] == 1


def test_behaviour_is_repelled_by_a_bonus_whose_mean_gradient_is_the_kernels():
    n_windows, horizon = 40, 3
    windows = []
    for i in range(3):
        observations = normal(n_windows, horizon, 2, seed=i) + torch.tensor([float(i), 0.0])
        mask = torch.ones(n_windows, horizon, dtype=torch.bool)
        windows.append(Trajectories(observations, torch.zeros(n_windows, horizon, 1), torch.zeros(n_windows, horizon), mask))
    repulsion = behavior_repulsion(windows, StateVisitation())
    points = [StateVisitation()(part) for part in windows]
    scale = torch.cat(points).std(dim=0)
    phi = torch.stack([(part / scale).mean(dim=0) for part in points]).double().requires_grad_()
    h = median_bandwidth(squared_distances(phi.detach()))
    kernel = torch.exp(-(phi[:, None] - phi[None].detach()).square().sum(dim=2) / h)
    (force,) = torch.autograd.grad(-kernel.sum(), phi)  # away from the others, held where they are
    for i, bonus in enumerate(repulsion.bonuses):
        expected = ((points[i] / scale).double() - phi[i].detach()) @ force[i]
        torch.testing.assert_close(bonus.double(), expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(bonus.mean(), torch.tensor(0.0), rtol=0, atol=1e-4)
    # the outer ones are worth more the further out they go
    assert torch.corrcoef(torch.stack([repulsion.bonuses[2], points[2][:, 0]]))[0, 1] > 0.5
    assert torch.corrcoef(torch.stack([repulsion.bonuses[0], points[0][:, 0]]))[0, 1] < -0.5


def test_bonuses_are_added_to_the_steps_of_their_windows_in_proportion_to_the_temperature(small, fill):
    model = fill(small("pg", kernel="behavior", embedding_horizon=5, behavior_coef=0.02))
    plain, added = [], []
    for temperature in (1.0, 10.0):
        for particle, share in zip(model.particles, model.shares(), strict=True):
            particle.begin(share, 1.0, in_order=True)
        plain = [particle.advantages.clone() for particle in model.particles]
        kernel, ratio = model._repel_behavior(temperature)
        added.append(torch.stack([p.advantages - before for p, before in zip(model.particles, plain, strict=True)]))
        assert ratio == pytest.approx(0.02 * temperature)
        torch.testing.assert_close(added[-1].norm() / torch.stack(plain).norm(), torch.tensor(ratio), rtol=1e-4, atol=0)
    assert kernel.shape == (3, 3)
    torch.testing.assert_close(added[1], 10 * added[0], rtol=1e-3, atol=1e-6)
    starts = model.shares()[0].episode_starts[:, 0]
    first = added[0][0, :5]
    assert not starts[1:5].any()
    torch.testing.assert_close(first, first[:1].expand(5))  # one window, one bonus


def test_the_worst_quarter_becomes_perturbed_copies_of_the_best(small):
    model = small("a2c", n_particles=4, selection_interval=2, selection_noise=0.01).learn(4 * 2 * 16)
    for i, returns in enumerate(model.particle_returns):
        returns.extend([float(i == 2) - (i == 1)] * 100)
    theta = model.policy.theta.clone()
    model._select()
    change = (model.policy.theta - theta).abs().amax(dim=1)
    assert (change[[0, 2, 3]] == 0).all()
    difference = (model.policy.theta[1] - theta[2]).abs()
    assert 0 < difference.min()
    assert 0.009 < difference.max() <= 0.0100001
    moments = model.policy.optimizer.state[model.policy.theta]["exp_avg"]
    assert torch.equal(moments[1], moments[2])
    one, other = (model.particles[i].learner.critic_parameters for i in (1, 2))
    assert all(torch.equal(q, p) for q, p in zip(one, other, strict=True))
    mine, theirs = (model.policy.particles[i].optimizer.state_dict()["state"] for i in (1, 2))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert not {state["exp_avg"].data_ptr() for state in mine.values()} & {s["exp_avg"].data_ptr() for s in theirs.values()}
    assert len(model.particle_returns[1]) == 0


def test_an_episode_that_another_policy_began_says_nothing_of_the_copy(small):
    model = small("pg", n_particles=4, n_steps=5)  # half an episode
    model.learn(5 * model.n_envs)
    for i, returns in enumerate(model.particle_returns):
        returns.append(-float(i))
    model._select()
    model.learn(5 * model.n_envs, reset_num_timesteps=False)
    assert [len(returns) for returns in model.particle_returns] == [3, 3, 3, 0]
    model.learn(10 * model.n_envs, reset_num_timesteps=False)
    assert [len(returns) for returns in model.particle_returns] == [5, 5, 5, 2]


def test_selection_happens_at_its_interval(small):
    model = small("pg", n_particles=4, selection_interval=2)
    calls = []
    model._select = lambda: calls.append(model._n_updates)
    model.learn(5 * 16 * 8)
    assert calls == [2, 4]


def test_temperatures_follow_their_schedules(small):
    annealed = AnnealedTemperature(100, 1)
    assert [annealed(1.0), annealed(0.0)] == pytest.approx([100, 1])
    assert annealed(0.5) == pytest.approx(10)
    cyclical = CyclicalTemperature(10, 1000, n_cycles=2)
    assert [cyclical(r) for r in (1.0, 0.5, 0.0)] == pytest.approx([1000, 1000, 10])
    assert 10 < cyclical(0.55) < 12 < cyclical(0.8) < 1000
    assert CyclicalTemperature(10, 1000, n_cycles=1, power=2)(0.5) == pytest.approx(1 / (0.75 / 1000 + 0.25 / 10))
    for wrong in ({"initial": 0}, {"final": -1}):
        with pytest.raises(ValueError, match="must be a finite number > 0"):
            AnnealedTemperature(**wrong)
    with pytest.raises(ValueError, match="n_cycles"):
        CyclicalTemperature(n_cycles=0)
    model = small("pg", temperature=annealed)
    seen = []
    direction = model._direction
    model._direction = lambda gradients, temperature: seen.append(temperature) or direction(gradients, temperature)
    model.learn(2 * 16 * 6)
    assert seen == pytest.approx([10, 1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pg", "wnpg"])
def test_particles_learn_to_swing_up_a_little(name):
    env = make_batched("RllabCartPoleSwingUp-v0", 8 * 4, seed=0)
    kwargs = {} if name == "pg" else {"batch_size": 500, "n_critic_updates": 5, "cg_max_steps": 5, "sub_sampling_factor": 4}
    model = SVPG("MlpPolicy", env, name, n_particles=8, n_steps=250, stats_window_size=10, algorithm_kwargs=kwargs, seed=0)
    model.learn(2 * 8000)
    first = model.mean_returns.mean()
    model.learn((60 if name == "pg" else 15) * 8000, reset_num_timesteps=False)
    assert first < -80
    assert model.mean_returns.mean() > first + 60


def test_only_particles_that_have_finished_an_episode_are_selected(small):
    model = small("pg", n_particles=8, selection_interval=2)
    model._setup_learn(1)
    theta = model.policy.theta.clone()
    model._select()
    assert torch.equal(model.policy.theta, theta)
    for i, value in ((1, 3.0), (2, 1.0), (4, 2.0), (7, 5.0)):
        model.particle_returns[i].append(value)
    model._select()
    assert (model.policy.theta != theta).any(dim=1).nonzero().flatten().tolist() == [2]
    model._select()  # the copy has no return of its own yet, and three are too few
    assert (model.policy.theta != theta).any(dim=1).nonzero().flatten().tolist() == [2]


def test_a_coordinate_that_only_rounding_varies_repels_nobody():
    generator = torch.Generator().manual_seed(0)

    def windows(constant):
        mask = torch.arange(7) < torch.randint(2, 8, (12, 1), generator=torch.Generator().manual_seed(1))
        varying = torch.randn(12, 7, 2, generator=generator)
        observations = torch.cat([varying, torch.full((12, 7, 1), constant)], dim=2) * mask[:, :, None]
        return Trajectories(observations, torch.zeros(12, 7, 1), torch.zeros(12, 7), mask)

    bonuses = {}
    for constant in (0.0, 9.81):
        generator.manual_seed(0)
        repulsion = behavior_repulsion([windows(constant) for _ in range(4)], make_embedding("state_visitation"))
        bonuses[constant] = torch.stack(repulsion.bonuses)
    torch.testing.assert_close(bonuses[9.81], bonuses[0.0])


@pytest.mark.parametrize("kind", ["pg", "wnpg"])
def test_schedules_end_at_zero_where_the_last_rollout_goes_past_the_total(small, kind):
    seen = []
    model = small(
        kind, temperature=lambda progress: seen.append(progress) or 1 + 9 * progress, learning_rate=lambda p: 1e-2 * p
    )
    seen.clear()
    model.learn(model.n_steps * model.n_envs // 3)
    assert seen == [0.0]
    assert model.logger.name_to_value["train/temperature"] == 1
    if kind == "pg":
        assert model.policy.optimizer.param_groups[0]["lr"] == 0


def test_means_over_particles_are_of_the_last_update_however_rarely_they_are_written(small):
    losses = []

    class Spy(BaseCallback):
        def _on_rollout_start(self):
            losses.append(self.logger.name_to_value.get("train/value_loss"))

        def _on_step(self):
            return True

    model = small("a2c")
    model.learn(4 * model.n_steps * model.n_envs, Spy(), log_interval=100)
    assert losses[0] is None
    assert len(set(losses)) == 4


def test_one_advantage_each_is_refused(small):
    with pytest.raises(ValueError, match="n_steps=1 with one environment each"):
        small("pg", "Pendulum-v1", n_steps=1)


@pytest.mark.parametrize("use_sde", [False, True])
def test_larger_weights_at_first_leave_biases_and_spreads(small, use_sde):
    kwargs = {"ortho_init": False, "log_std_init": -1.0}  # biases that are not zero
    one, three = (small("pg", policy_kwargs=kwargs, use_sde=use_sde, initial_scale=scale).policy for scale in (1.0, 3.0))
    for small_one, large in zip(one, three, strict=True):
        assert (large.log_std == small_one.log_std).all()
        torch.testing.assert_close(large.action_net.weight, 3 * small_one.action_net.weight)
        torch.testing.assert_close(large.action_net.bias, small_one.action_net.bias)
        torch.testing.assert_close(large.value_net.weight, small_one.value_net.weight)
    assert (three.theta.norm(dim=1) > one.theta.norm(dim=1)).all()  # which the stacked forward pass reads
