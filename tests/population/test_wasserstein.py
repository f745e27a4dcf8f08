"""Policies that keep apart or close: one sign, one unit, no effect at zero, and two goals found instead of one."""

import inspect

import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecNormalize

from sb3_wng import SVPG, WassersteinPopulation
from sb3_wng.algorithms.rollouts import rollout_windows
from sb3_wng.behavior import Trajectory, make_embedding
from sb3_wng.envs import make_batched
from sb3_wng.geometry import sinkhorn_distance, sinkhorn_potential
from sb3_wng.population import AnnealedCoefficient
from sb3_wng.population.wasserstein import reward_unit

SETTINGS = {"n_steps": 20, "embedding": "state_sequence", "embedding_horizon": 20, "seed": 0, "device": "cpu"}
NETWORK = {"net_arch": [8]}


@pytest.fixture
def walkers():
    """``walkers(n_policies, **settings)``: policies that walk in the plane of two goals, whole episodes at a time."""

    def build(n_policies=2, algorithm="pg", n_columns=30, normalize=False, **settings):
        env = make_batched("TwoGoals-v0", n_policies * n_columns, seed=0)
        kwargs = {} if algorithm.startswith("pg") else {"batch_size": 200, "n_critic_updates": 2}
        return WassersteinPopulation(
            "MlpPolicy",
            VecNormalize(env, norm_reward=False) if normalize else env,
            algorithm,
            n_policies,
            **{"policy_kwargs": NETWORK, "algorithm_kwargs": kwargs, **SETTINGS, **settings},
        )

    return build


@pytest.fixture
def signals(fill):
    """What the steps of a rollout are charged, one row of steps per policy, one environment after the other."""

    def compute(model):
        charged, interact = [], model._interact

        def record(buffer, *coefficients):
            before = buffer.rewards.copy()
            interact(buffer, *coefficients)
            charged.append(before - buffer.rewards)

        model._interact = record
        fill(model)
        return torch.stack([torch.as_tensor(charged[0][:, columns].T.reshape(-1)) for columns in model.columns])

    return compute


@pytest.fixture
def unpaid(fill):
    """A rollout whose steps have not been charged yet."""

    def collect(model):
        model._interact = lambda *arguments: None
        fill(model)
        del model._interact
        return model.rollout_buffer

    return collect


def paths(model):
    """Points of every policy's windows in the rollout."""
    found = []
    for share in model.shares():
        observations = share.observations.swapaxes(0, 1)
        found.append(torch.as_tensor(observations.reshape(len(observations), -1)))
    return found


def distance_after(walkers, n_rollouts=12, **settings):
    """Measured distance of the policies' paths at the end of training."""
    model = walkers(learning_rate=0.02, **settings)
    model.learn(n_rollouts * model.n_steps * model.n_envs)
    return sinkhorn_distance(*paths(model), cost="euclidean").item()


def test_the_larger_the_coefficient_the_nearer_the_policies(walkers):
    distances = [distance_after(walkers, wasserstein_coef=coefficient) for coefficient in (-4.0, 0.0, 4.0)]
    assert distances[0] > 1.5 * distances[1]
    assert distances[1] > 1.5 * distances[2]


@pytest.mark.parametrize("distance", ["sinkhorn", "dual"])
def test_both_distances_repel(walkers, distance):
    near, far = (distance_after(walkers, wasserstein_coef=c, distance=distance) for c in (0.0, -4.0))
    assert far > 1.5 * near


@pytest.mark.parametrize("algorithm", ["pg", "pg_linear", "a2c", "npg", "wnpg"])
def test_a_coefficient_of_zero_is_independent_training(walkers, algorithm):
    model = walkers(3, algorithm, wasserstein_coef=0.0)
    kwargs = {} if algorithm.startswith("pg") else {"batch_size": 200, "n_critic_updates": 2}
    other = SVPG(
        "MlpPolicy",
        make_batched("TwoGoals-v0", 90, seed=0),
        algorithm,
        n_particles=3,
        temperature=1.0,
        kernel="behavior",  # windows are read in order, too
        behavior_coef=0.0,
        policy_kwargs=NETWORK,
        algorithm_kwargs=kwargs,
        **SETTINGS,
    )
    start = model.policy.theta.clone()
    for one in (model, other):
        set_random_seed(0)
        one.learn(3 * 20 * 90)
    assert not torch.equal(model.policy.theta, start)
    assert torch.equal(model.policy.theta, other.policy.theta)


def test_steps_are_charged_the_potential_in_units_of_the_spread_and_the_rewards(walkers, unpaid):
    model = walkers(wasserstein_coef=-3.0)
    before = unpaid(model).rewards.copy()
    model._interact(model.rollout_buffer, np.array([[0, -3.0], [-3.0, 0]]), 0.0)
    x, y = paths(model)
    potential = sinkhorn_potential(x, y, cost="euclidean")
    length = torch.cat([x, y]).double().var(dim=0).sum().sqrt()
    unit = np.sqrt((before[:, model.columns[0]].astype(float) ** 2).mean())
    expected = -3.0 * unit * (potential - potential.mean()) / length
    charged = (before - model.rollout_buffer.rewards)[:, model.columns[0]]
    np.testing.assert_allclose(charged, np.tile(expected, (20, 1)), rtol=1e-3, atol=1e-4)


def test_what_a_step_is_charged_reaches_the_actions_before_it(walkers, signals, fill):
    model = walkers(1, reference=torch.zeros(1, 40), reference_coef=5.0, embedding_horizon=10, embedding=late_position)
    paid = -signals(model)[0].reshape(-1, 20).T.numpy()
    discounted = paid.copy()
    for step in reversed(range(19)):
        discounted[step] += model.gamma * discounted[step + 1]
    without = fill(walkers(1, reference=torch.zeros(1, 40), reference_coef=0.0, embedding_horizon=10, embedding=late_position))
    gained = model.rollout_buffer.returns - without.rollout_buffer.returns
    np.testing.assert_allclose(gained, discounted, rtol=1e-3, atol=1e-3)
    assert np.abs(discounted[:10]).max() > np.abs(paid[:10]).max()


def late_position(trajectory):
    """Forty numbers of which only the window's last position is not zero."""
    return torch.cat([trajectory.observations[-1], torch.zeros(38)])


def test_constant_and_absent_rewards_have_a_unit():
    assert reward_unit(np.ones((5, 2), np.float32)) == 1
    assert reward_unit(np.zeros((5, 2), np.float32)) == 1
    assert reward_unit(np.array([[3.0, -4.0]], np.float32)) == pytest.approx(np.sqrt(12.5))


@pytest.mark.parametrize("cost", ["euclidean", "sqeuclidean"])
def test_the_signal_does_not_depend_on_the_unit_of_rewards_and_embedding(walkers, signals, unpaid, cost):
    def kilometres(trajectory):
        return trajectory.observations.flatten() / 1000

    plain = signals(walkers(cost=cost))
    torch.testing.assert_close(signals(walkers(cost=cost, embedding=kilometres)), plain, rtol=1e-2, atol=1e-3)
    model, charged = walkers(), []
    rewards = unpaid(model).rewards.copy()
    for scale in (1, 10):
        model.rollout_buffer.rewards[:] = scale * rewards
        model._interact(model.rollout_buffer, np.array([[0, -1.0], [-1.0, 0]]), 0.0)
        charged.append(scale * rewards - model.rollout_buffer.rewards)
    np.testing.assert_allclose(charged[1], 10 * charged[0], rtol=1e-3, atol=1e-3)


def test_every_policy_feels_its_own_row_of_the_matrix(walkers, signals):
    matrix = np.array([[7.0, -1.0, 0.0], [0.0, 7.0, 0.0], [2.0, 0.5, 7.0]])
    taken = signals(walkers(3, wasserstein_coef=matrix))
    assert (taken[1] == 0).all()
    parts = {}
    for i, j in ((0, 1), (2, 0), (2, 1)):
        one = np.zeros((3, 3))
        one[i, j] = matrix[i, j]
        parts[i, j] = signals(walkers(3, wasserstein_coef=one))
        assert (parts[i, j][[k for k in range(3) if k != i]] == 0).all()
    torch.testing.assert_close(taken[0], parts[0, 1][0])
    torch.testing.assert_close(taken[2], parts[2, 0][2] + parts[2, 1][2])


def test_a_number_is_a_matrix_full_of_it_and_means_the_same_for_more_policies(walkers, signals):
    number, matrix = (signals(walkers(3, wasserstein_coef=c)) for c in (-1.0, np.full((3, 3), -1.0)))
    torch.testing.assert_close(number, matrix, rtol=0, atol=0)
    assert number.std(dim=1).max() < 1


@pytest.mark.parametrize("distance", ["sinkhorn", "dual"])
def test_the_order_of_the_policies_does_not_matter(walkers, unpaid, distance):
    order = [2, 0, 1]
    coefficients = np.array([[0.0, -1.0, 2.0], [-0.5, 0.0, 0.3], [1.0, 1.5, 0.0]])
    model, other = (walkers(3, wasserstein_coef=c, distance=distance) for c in (coefficients, coefficients[order][:, order]))
    mine, theirs = unpaid(model), unpaid(other)
    for name in ("observations", "actions", "rewards", "episode_starts"):
        values = getattr(mine, name)
        getattr(theirs, name)[:] = np.concatenate([values[:, model.columns[i]] for i in order], axis=1)
    charged = []
    for one in (model, other):
        before = one.rollout_buffer.rewards.copy()
        one._interact(one.rollout_buffer, np.asarray(one.wasserstein_coef), 0.0)
        charged.append(np.stack([(before - one.rollout_buffer.rewards)[:, columns] for columns in one.columns]))
    # duals stop within their tolerance, from wherever the fit before had left them
    np.testing.assert_allclose(charged[1], charged[0][order], rtol=0, atol=1e-4 if distance == "sinkhorn" else 5e-3)


def to_the_right(n=20):
    """A path along the x axis."""
    return torch.stack([0.25 * torch.arange(n), torch.zeros(n)], dim=1)


def test_one_policy_with_a_reference_is_drawn_to_it(walkers, unpaid):
    reference = to_the_right().flatten()[None]
    model = walkers(1, reference=reference, reference_coef=2.0)
    before = unpaid(model).rewards.copy()
    model._interact(model.rollout_buffer, np.zeros((1, 1)), 2.0)
    (x,) = paths(model)
    # the distance from one point needs no plan: the potential is the distance itself, less the cloud's own
    potential = sinkhorn_potential(x, reference, cost="euclidean")
    length = torch.cat([x, reference]).double().var(dim=0).sum().sqrt()
    expected = 2.0 * reward_unit(before) * (potential - potential.mean()) / length
    np.testing.assert_allclose(before - model.rollout_buffer.rewards, np.tile(expected, (20, 1)), rtol=1e-3, atol=1e-4)
    ends = []
    for coefficient in (0.0, 3.0):
        model = walkers(1, reference=reference, reference_coef=coefficient, learning_rate=0.02).learn(40 * 600)
        ends.append(sinkhorn_distance(*paths(model), reference, cost="euclidean").item())
    assert ends[1] < 0.7 * ends[0]


def test_all_policies_feel_the_reference_and_each_other(walkers, signals):
    reference = [Trajectory(to_the_right(), torch.zeros(20, 2), torch.zeros(20))]
    both = signals(walkers(reference=reference, reference_coef=0.5))
    apart = signals(walkers(reference=reference, reference_coef=0.0))
    drawn = signals(walkers(reference=reference, reference_coef=0.5, wasserstein_coef=0.0))
    assert (drawn != 0).any(dim=1).all()
    torch.testing.assert_close(both, apart + drawn, rtol=1e-4, atol=1e-5)


def test_a_reference_is_compared_without_normalisation(walkers, fill):
    model, seen = walkers(normalize=True, reference=to_the_right().flatten()[None]), []
    model._log_distances = seen.extend
    fill(model)
    normalizer = model.get_vec_normalize_env()
    raw = normalizer.unnormalize_obs(model.rollout_buffer.observations)
    expected = make_embedding("state_sequence")
    _, trajectories = rollout_windows(model.particles[1].learner, 20, normalizer)
    points = expected(trajectories)
    torch.testing.assert_close(seen[1], points)
    np.testing.assert_allclose(points[0].reshape(20, 2), raw[:, 30], rtol=1e-5, atol=1e-5)


def test_coefficients_follow_their_schedule(walkers):
    annealed = AnnealedCoefficient(-2.0, -0.5, 0.5)
    assert [annealed(r) for r in (1.0, 0.75, 0.5, 0.1)] == pytest.approx([-2, -1, -0.5, -0.5])
    for wrong in ({"initial": 1.0}, {"final": 0.0}, {"fraction": 0.0}, {"initial": -np.inf}):
        with pytest.raises(ValueError, match=r"initial and final|fraction"):
            AnnealedCoefficient(**wrong)
    model, seen = walkers(wasserstein_coef=lambda remaining: np.full((2, 2), remaining - 1)), []
    model._interact = lambda buffer, coefficients, to_reference: seen.append(coefficients.tolist())
    model.learn(2 * 20 * 60)
    np.testing.assert_allclose(seen, [[[0, -0.5], [-0.5, 0]], [[0, -1], [-1, 0]]])


@pytest.mark.parametrize("settings", [{}, {"distance": "dual"}, {"distance": "dual", "algorithm": "wnpg"}], ids=str)
def test_a_resumed_run_equals_an_uninterrupted_one(walkers, fill, tmp_path, settings):
    reference = to_the_right().flatten()[None] + torch.linspace(-0.1, 0.1, 5)[:, None]
    model = walkers(reference=reference, **settings).learn(2 * 20 * 60)
    model.save(tmp_path / "model")
    loaded = WassersteinPopulation.load(tmp_path / "model", env=make_batched("TwoGoals-v0", 60, seed=0), device="cpu")
    before = model.policy.theta.clone()
    for one in (model, loaded):
        set_random_seed(1)
        for _ in range(2):  # episodes start in the middle, and are over with the rollout
            fill(one)
            one.train()
    assert not torch.equal(model.policy.theta, before)
    mine, theirs = loaded.get_parameters(), model.get_parameters()
    assert any("duals" in name for name in mine["transports"]) == (settings.get("distance") == "dual")
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_a_loaded_population_is_the_one_saved_and_learns_on(walkers, tmp_path):
    model = walkers(wasserstein_coef=AnnealedCoefficient()).learn(20 * 60)
    model.save(tmp_path / "model")
    loaded = WassersteinPopulation.load(tmp_path / "model", env=model.env, device="cpu")
    observation = np.ones((1, 2), np.float32)
    for particle in (None, 0, 1):
        mine, theirs = (m.predict(observation, deterministic=True, particle=particle)[0] for m in (loaded, model))
        np.testing.assert_array_equal(mine, theirs)
    assert loaded.wasserstein_coef == AnnealedCoefficient()
    assert loaded.learn(20 * 60, reset_num_timesteps=False).num_timesteps == 2 * 20 * 60


@pytest.mark.parametrize("embedding", ["state_visitation", "action_sequence", "final_state", lambda t: t.rewards.sum()])
def test_unequal_windows_of_ordinary_environments_train(embedding):
    env = make_vec_env("CartPole-v1", n_envs=4, seed=0)
    model = WassersteinPopulation(
        "MlpPolicy", env, "npg", embedding=embedding, embedding_horizon=7, n_steps=30, seed=0, device="cpu"
    )
    theta = model.policy.theta.clone()
    model.learn(2 * 30 * 4)
    assert torch.isfinite(model.policy.theta).all()
    assert (model.policy.theta != theta).any(dim=1).all()


def test_distances_and_coefficients_are_logged(walkers):
    model, written = walkers(3, reference=to_the_right().flatten()[None], distance="dual"), {}
    model.set_logger(configure(None, []))
    dump = model.logger.dump
    model.logger.dump = lambda step=0: (written.update(model.logger.name_to_value), dump(step))
    model.learn(2 * 20 * 90)
    pairs = [written[f"particles/wasserstein_distance_{i:02d}_{j:02d}"] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert written["train/wasserstein_distance"] == pytest.approx(np.mean(pairs))
    assert written["train/wasserstein_distance_min"] == min(pairs)
    # an update after the last dump leaves the distance that its rollout had, not how far natural gradients stepped
    model.learn(20 * 90, log_interval=None)
    left = model.logger.name_to_value
    assert left["train/wasserstein_distance"] == pytest.approx(
        np.mean([left[f"particles/wasserstein_distance_{p}"] for p in ("00_01", "00_02", "01_02")])
    )
    model.learn(20 * 90)
    assert "train/wasserstein_distance" not in model.logger.name_to_value
    assert written["train/wasserstein_coef"] == pytest.approx(-0.1)
    assert written["train/reference_coef"] == 1
    assert written["train/reference_distance"] > 0
    assert {"train/n_dual_fallbacks", "train/std", "train/parameter_norm", "train/n_unusable_gradients"} <= written.keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_policies": 0}, "n_policies must be an integer >= 1"),
        ({"n_envs_per_policy": 0}, "n_envs_per_policy must be an integer >= 1"),
        ({"n_policies": 1}, "nothing to be compared with: pass reference="),
        ({"wasserstein_coef": np.nan}, "wasserstein_coef must be a finite number, a matrix"),
        ({"wasserstein_coef": np.zeros((3, 3))}, r"a matrix of shape \(2, 2\)"),
        ({"wasserstein_coef": "repel"}, "wasserstein_coef must be"),
        ({"wasserstein_coef": lambda remaining: -1 / remaining if remaining else np.inf}, "wasserstein_coef must be"),
        ({"reference_coef": None}, "reference_coef must be"),
        ({"distance": "closed_form"}, "distance must be one of 'sinkhorn', 'dual'"),
        ({"cost": "cosine"}, "cost must be one of"),
        ({"entropic_reg": 0.0}, "entropic_reg must be a finite number > 0"),
        ({"embedding": "velocity"}, "embedding must be"),
        ({"embedding_horizon": 0}, "embedding_horizon must be an integer >= 1"),
        ({"reference": np.zeros((5, 7))}, r"reference must be of the embedding's dimension, shape \(m, 3\).*, got \(m, 7\)"),
        ({"algorithm": "ppo"}, "no one gradient of the return"),
        ({"algorithm_kwargs": {"gamma": 0.9}}, "pass gamma to WassersteinPopulation itself"),
        ({"algorithm_kwargs": {"wasserstein_coef": 1.0}}, "wasserstein_coef is an argument of the population"),
    ],
)
def test_bad_arguments_are_refused_with_what_to_do(settings, message):
    with pytest.raises(ValueError, match=message):
        WassersteinPopulation("MlpPolicy", "Pendulum-v1", device="cpu", **settings)


def test_environments_must_divide_evenly():
    with pytest.raises(ValueError, match=r"multiple of n_policies=2, got 3.*n_envs_per_policy"):
        WassersteinPopulation("MlpPolicy", make_batched("TwoGoals-v0", 3))
    assert WassersteinPopulation("MlpPolicy", "Pendulum-v1", n_envs_per_policy=3, device="cpu").n_envs == 6


def test_the_shipped_hyperparameters_build_a_population_for_every_task():
    pytest.importorskip("rl_zoo3")
    import gymnasium
    import optuna
    import rl_zoo3.hyperparams_opt
    import yaml
    from rl_zoo3.exp_manager import ExperimentManager

    from sb3_wng import zoo

    zoo.register()
    known = set(inspect.signature(WassersteinPopulation).parameters)
    for env_id, entry in yaml.safe_load(zoo.hyperparams_file("wassersteinpopulation").read_text()).items():
        assert set(entry) <= known | {"n_timesteps", "n_envs", "normalize"}, env_id
        assert entry["n_envs"] % entry.get("n_policies", 2) == 0
        assert env_id == "default" or env_id in gymnasium.registry
        entry = ExperimentManager._preprocess_schedules(entry)
        arguments = {key: value for key, value in entry.items() if key in known - {"policy", "policy_kwargs"}}
        WassersteinPopulation("MlpPolicy", "Pendulum-v1", **arguments, device="cpu")
    trial = optuna.create_study().ask()
    sampled = rl_zoo3.hyperparams_opt.HYPERPARAMS_SAMPLER["wassersteinpopulation"](trial, 3, 8, {})
    assert set(sampled) <= known
    assert rl_zoo3.hyperparams_opt.HYPERPARAMS_CONVERTER["wassersteinpopulation"](trial.params) == sampled


def test_the_message_says_where_a_bad_reward_occurred_and_not_where_it_was_charged(breaking):
    env = make_vec_env(lambda: breaking("rewards", 5), n_envs=4)
    model = WassersteinPopulation("MlpPolicy", env, "pg", n_steps=16, embedding_horizon=4, device="cpu")
    with pytest.raises(ValueError, match=r"non-finite rewards \(first at step 4"):
        model.learn(64)


def test_the_logged_distance_from_the_reference_is_the_mean_over_policies(fill):
    reference = torch.stack([0.25 * torch.arange(20), torch.zeros(20)], dim=1).flatten()[None]
    model = fill(
        WassersteinPopulation(
            "MlpPolicy",
            make_batched("TwoGoals-v0", 20, seed=0),
            "pg",
            n_policies=2,
            reference=reference,
            n_steps=20,
            embedding="state_sequence",
            embedding_horizon=20,
            seed=0,
            device="cpu",
        )
    )
    found = []
    for share in model.shares():
        points = torch.as_tensor(share.observations.swapaxes(0, 1).reshape(share.n_envs, -1))
        found.append(sinkhorn_distance(points, reference, cost="euclidean").item())
    assert model.logger.name_to_value["train/reference_distance"] == pytest.approx(np.mean(found), rel=1e-3)
    assert abs(found[0] - found[1]) > 0.01 * found[0]
