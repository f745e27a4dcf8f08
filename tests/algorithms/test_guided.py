"""Behaviour-guided policy gradients: what the penalty is, which way it pulls, and what it is measured against."""

import copy

import numpy as np
import ot
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from sb3_wng import BGPG, BGWNPG, PG, WNPG
from sb3_wng.algorithms import guidance
from sb3_wng.algorithms.penalty import SampleTransport
from sb3_wng.behavior import EMBEDDINGS, Trajectory, collect_trajectories, reference_points
from sb3_wng.geometry import GaussianLaw
from sb3_wng.optim.natural_gradient import StepReport

EPOCHS = {"n_policy_updates": 6, "policy_batch_size": 16, "learning_rate": 3e-3}
SAMPLED = ["sinkhorn", "dual"]
# every class that has a coefficient, with every distance
GUIDED = {
    **{f"BGPG-{distance}": (BGPG, {**EPOCHS, "distance": distance}) for distance in ("closed_form", "kl", *SAMPLED)},
    "BGWNPG": (BGWNPG, {"policy_batch_size": 16, "actor_learning_rate": 3e-3, "n_penalized_epochs": 6, "target_kl": None}),
    "BGWNPG-several-natural-steps": (BGWNPG, {"n_penalized_epochs": 0, "policy_batch_size": None, "n_policy_updates": 4}),
}


def corner(n=40, d=2, value=1.0):
    return value + 0.1 * np.random.default_rng(0).standard_normal((n, d))


@pytest.mark.parametrize("case", GUIDED)
def test_a_larger_coefficient_gives_a_smaller_distance_in_every_class(small, chase, fill, watch, case):
    cls, settings = GUIDED[case]
    distances = []
    for coefficient in (-3.0, 1e-6, 30.0):
        model = fill(small(cls, chase(), n_steps=128, wasserstein_coef=coefficient, **settings))
        records = watch(model)
        model.train()
        distances.append(records[0]["distance"])
    slack = 1.001 if "several" in case else 1.0  # a trust region ends where it ends
    assert distances[0] * slack > distances[1] > distances[2] > 0, distances


@pytest.mark.parametrize("action_space", [spaces.Box(-2, 2, (2,)), spaces.MultiDiscrete([2, 3])], ids=["box", "discrete"])
@pytest.mark.parametrize(("guided", "plain"), [(BGPG, PG), (BGWNPG, WNPG)])
def test_without_a_coefficient_it_is_the_plain_method_to_the_last_bit(small, chase, weights, action_space, guided, plain):
    same = {"n_policy_updates": 2, "policy_batch_size": 16} if plain is PG else {"learning_rate": 1e-3}
    expected = weights(small(plain, chase(action_space), **same).learn(96))
    actual = weights(small(guided, chase(action_space), wasserstein_coef=0, **same).learn(96))
    assert torch.equal(actual, expected)
    assert not torch.equal(weights(small(guided, chase(action_space), wasserstein_coef=1.0, **same).learn(96)), expected)


def logged_update(model):
    model.train()
    return dict(model.logger.name_to_value)


def test_the_logged_distance_is_that_of_the_laws(small, chase, fill, watch):
    model = fill(small(BGPG, chase(), **EPOCHS))
    records = watch(model)
    model.train()
    assert records[0]["train/wasserstein_distance"] == pytest.approx(records[0]["distance"], rel=1e-5)
    assert records[0]["train/wasserstein_coef"] == 1.0


@pytest.mark.parametrize("distance", SAMPLED)
@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_the_logged_distance_of_trajectories_agrees_with_exact_transport(small, chase, fill, distance, embedding):
    dim = {"action_sequence": 10, "reward_to_go": 5, "state_sequence": 15}.get(embedding, 3)
    reference = np.random.default_rng(0).normal(4.0, 1.0, (48, dim))
    model = small(
        BGPG, chase(), n_steps=256, distance=distance, embedding=embedding, embedding_horizon=5, reference=reference, **EPOCHS
    )
    dumped = []
    fill(model)
    embed = model.penalty.embedding
    model.penalty.embedding = lambda trajectories: dumped.append(embed(trajectories)) or dumped[-1]
    logged = logged_update(model)["train/wasserstein_distance"]
    exact = ot.emd2([], [], ot.dist(dumped[0].double().numpy(), reference))
    # sampling noise is in the exact distance between samples, the debiased one has less of it
    assert logged == pytest.approx(exact, rel=0.1)


def test_the_distance_from_the_rollout_before_is_that_of_its_points(small, chase, fill):
    settings = {"n_steps": 256, "distance": "sinkhorn", "embedding": "state_visitation", "embedding_horizon": 4, **EPOCHS}
    model = fill(small(BGPG, chase(), **settings))
    assert "train/wasserstein_distance" not in logged_update(model)  # there is no rollout before
    before = model.penalty.memory.points
    fill(model)
    logged = logged_update(model)["train/wasserstein_distance"]
    after = model.penalty.memory.points
    exact = ot.emd2([], [], ot.dist(before.double().numpy(), after.double().numpy()))
    assert 0 <= logged < exact  # same law: what the exact distance finds is noise


@pytest.mark.parametrize("distance", SAMPLED)
def test_samples_of_gaussian_actions_have_the_distance_of_their_laws(distance):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((256, 2), generator=generator, dtype=torch.float64)
    old = GaussianLaw(torch.zeros(256, 2).double(), torch.ones(256, 2).double())
    new = GaussianLaw(old.mean + torch.tensor([1.0, -0.5]), 1.3 * old.std)
    value = SampleTransport(distance, 0.05).value(new.mean + new.std * noise, old.mean + old.std * noise)
    assert value.item() == pytest.approx(new.wasserstein_distance(old).mean().item(), rel=0.1)


@pytest.mark.parametrize("distance", SAMPLED)
def test_the_potential_is_the_derivative_of_the_distance_in_a_points_mass(distance):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((15, 2), generator=generator, dtype=torch.float64)
    y = torch.randn((20, 2), generator=generator, dtype=torch.float64) + 2
    transport = SampleTransport(distance, 0.3)
    potential = transport.potential(x, y)
    before, n_copies = transport.value(x, y), 10
    changes = []
    for i in range(len(x)):
        more = torch.cat([x.repeat(n_copies, 1), x[i : i + 1]])
        changes.append((transport.value(more, y) - before) * len(more))
    actual = torch.stack(changes)
    expected = potential - potential.mean()
    slack = 0.05 if distance == "sinkhorn" else 0.2  # the regularisation moves with the mean cost; the dual's ridge
    assert (actual - actual.mean() - expected).abs().max() < slack * expected.std() * 3
    assert torch.corrcoef(torch.stack([actual, expected]))[0, 1] > 0.98


@pytest.mark.parametrize("distance", SAMPLED)
@pytest.mark.parametrize("embedding", ["actions", "action_sequence", "final_state"])
def test_a_positive_coefficient_attracts_to_the_reference_and_a_negative_one_repels(small, distance, embedding):
    # the pendulum's own reward is silenced: what is learnt is the reference
    points = {"actions": corner(d=1), "action_sequence": corner(d=4), "final_state": np.tile([-0.5, 0.8, 2.0], (40, 1))}[
        embedding
    ]
    ends = []
    for coefficient in (2.0, -2.0):
        env = VecNormalize(make_vec_env("Pendulum-v1", 4, seed=0), norm_obs=False, norm_reward=False)
        model = small(
            BGPG,
            env,
            n_steps=64,
            distance=distance,
            embedding=embedding,
            embedding_horizon=4,
            reference=points + 1e-3 * np.random.default_rng(0).standard_normal(points.shape),
            wasserstein_coef=coefficient,
            n_policy_updates=3,
            policy_batch_size=128,
            learning_rate=1e-2,
        )
        model.learn(6 * 256)
        ends.append(model.logger.name_to_value["train/wasserstein_distance"])
    assert ends[0] < 0.9 * ends[1], ends


def test_an_adaptive_coefficient_brings_the_distance_to_its_target(small, chase, watch):
    for start, target in ((0.3, 0.01), (30.0, 0.05)):
        settings = {**EPOCHS, "n_steps": 64, "learning_rate": 1e-2}
        model = small(BGPG, chase(), wasserstein_coef=start, adaptive_coef=True, target_distance=target, **settings)
        records = watch(model)
        model.learn(64 * 20)
        late = [record["relative"] for record in records[-6:]]
        assert target / 3 < np.mean(late) < 3 * target
        assert model.penalty.coefficient.item() != start
        assert records[-1]["train/wasserstein_coef"] != start


def test_kl_stops_the_penalised_epochs(small, chase, fill):
    settings = {"policy_batch_size": 16, "actor_learning_rate": 1e-2, "n_penalized_epochs": 50, "wasserstein_coef": 1e-6}
    free = fill(small(BGWNPG, chase(), target_kl=None, **settings))
    stopped = fill(small(BGWNPG, chase(), target_kl=0.01, **settings))
    assert logged_update(stopped)["train/kl_divergence_loss"] < 0.3 * logged_update(free)["train/kl_divergence_loss"]


def test_a_dual_that_does_not_converge_is_counted_and_sinkhorn_takes_its_place(small, chase, fill, monkeypatch):
    monkeypatch.setattr("sb3_wng.geometry.dual_potentials._newton", lambda problem, start, *_: (start, 0, False))
    model = fill(small(BGPG, chase(), distance="dual", **EPOCHS))
    with pytest.warns(UserWarning, match="did not converge"):
        logged = logged_update(model)
    assert logged["train/n_dual_fallbacks"] > 0
    exact = SampleTransport("sinkhorn", 0.2)
    x, y = torch.randn(20, 2), torch.randn(30, 2) + 1
    with pytest.warns(UserWarning, match="did not converge"):
        assert SampleTransport("dual", 0.2).value(x, y) == exact.value(x, y)


@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_a_trained_model_of_any_class_is_a_reference(small, algorithm):
    env = make_vec_env("Pendulum-v1", 2, seed=0)
    guide = algorithm("MlpPolicy", env, seed=0, device="cpu", policy_kwargs={"net_arch": [8]})
    settings = {"distance": "sinkhorn", "embedding": "final_state", **EPOCHS}
    by_model = small(BGPG, "Pendulum-v1", reference=guide, **settings)
    by_pair = small(BGPG, "Pendulum-v1", reference=(guide, "Pendulum-v1"), **settings)
    for model in (by_model, by_pair):
        assert model.reference.shape == (model.reference.shape[0], 3)
        assert len(model.reference) >= 64
        assert np.isfinite(model.learn(64).reference).all()


def test_collecting_leaves_the_statistics_of_the_environment_alone():
    env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=0))
    model = PPO("MlpPolicy", env, n_steps=64, device="cpu", seed=0).learn(128)
    before = copy.deepcopy(env.obs_rms)
    trajectories = collect_trajectories(model, n_steps=100, horizon=10)
    np.testing.assert_array_equal(env.obs_rms.mean, before.mean)
    assert env.training
    assert len(trajectories) == 10
    # as the environment gives them: a point of the circle, and rewards below zero
    seen = trajectories.observations[trajectories.mask]
    torch.testing.assert_close(seen[:, :2].square().sum(dim=1), torch.ones(len(seen)), rtol=1e-4, atol=1e-4)
    assert (trajectories.rewards <= 0).all()
    assert trajectories.rewards.min() < -1


def test_discrete_demonstrations_are_one_hot(small):
    guide = DQN("MlpPolicy", "CartPole-v1", device="cpu", seed=0)
    trajectories = collect_trajectories(guide, n_steps=40, horizon=8)
    assert set(trajectories.actions.unique().tolist()) == {0.0, 1.0}
    model = small(
        BGPG, distance="sinkhorn", embedding="action_sequence", embedding_horizon=8, reference=trajectories, **EPOCHS
    )
    assert model.learn(64).reference.shape[1] == 16


def test_demonstrations_are_embedded_whole():
    demonstrations = [Trajectory(torch.full((t, 3), float(t)), torch.zeros(t, 1), torch.ones(t)) for t in (2, 5)]
    points = reference_points(demonstrations, EMBEDDINGS["final_state"](), horizon=32)
    np.testing.assert_array_equal(points, [[2, 2, 2], [5, 5, 5]])


BAD_REFERENCES = {
    "another dimension": (np.zeros((5, 7)), "dimension"),
    "empty": (np.zeros((0, 3)), "m >= 1"),
    "one-dimensional": (np.zeros(3), "m >= 1"),
    "not finite": (np.full((5, 3), np.nan), "finite"),
    "text": ("walk.npy", "reference must be"),
    "a model without an environment": (PPO("MlpPolicy", "Pendulum-v1", device="cpu", n_steps=8), "no environment"),
}


@pytest.mark.parametrize("case", BAD_REFERENCES)
def test_a_bad_reference_is_refused_before_training(small, case):
    reference, message = BAD_REFERENCES[case]
    if isinstance(reference, PPO):
        reference.env = None
    with pytest.raises(ValueError, match=message):
        small(BGPG, "Pendulum-v1", distance="sinkhorn", embedding="final_state", reference=reference)


REFUSED = {
    "coefficient": ({"wasserstein_coef": float("nan")}, "wasserstein_coef"),
    "unknown distance": ({"distance": "wasserstein"}, "distance must be one of"),
    "regularisation": ({"entropic_reg": -0.1, "distance": "sinkhorn"}, "entropic_reg"),
    "adaptive repulsion": ({"adaptive_coef": True, "wasserstein_coef": -1.0}, "adaptive_coef needs wasserstein_coef > 0"),
    "closed form of trajectories": ({"embedding": "final_state"}, "sinkhorn"),
    "closed form of a reference": ({"reference": np.zeros((5, 1))}, "sinkhorn"),
    "unknown embedding": ({"embedding": "footsteps", "distance": "dual"}, "embedding must be"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("cls", [BGPG, BGWNPG])
def test_a_penalty_that_cannot_be_computed_is_refused_with_what_to_pass_instead(small, cls, case):
    settings, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        small(cls, "Pendulum-v1", **settings)


def test_a_trust_region_leaves_nothing_to_adapt_to(small):
    with pytest.raises(ValueError, match="nothing to adapt"):
        small(BGWNPG, "Pendulum-v1", adaptive_coef=True, n_penalized_epochs=0, policy_batch_size=None)


def test_distances_that_an_action_space_has_not_are_refused(small):
    with pytest.raises(ValueError, match="needs a Box"):
        small(BGPG, "CartPole-v1", distance="sinkhorn")
    with pytest.raises(ValueError, match="needs discrete"):
        small(BGPG, "Pendulum-v1", distance="total_variation")


def test_total_variation_pins_a_discrete_policy_where_the_graphs_distance_lets_it_move(small, fill, watch):
    moved = {}
    for distance in ("closed_form", "total_variation"):
        model = fill(small(BGPG, "CartPole-v1", distance=distance, **{**EPOCHS, "n_steps": 128}))
        records = watch(model)
        model.train()
        moved[distance] = records[0]["relative"]
    assert 0 < moved["total_variation"] < 0.5 * moved["closed_form"]


def test_an_unused_reference_is_warned_of(small):
    with pytest.warns(UserWarning, match="no effect"):
        small(BGPG, "Pendulum-v1", wasserstein_coef=0, reference=np.zeros((3, 1)))


@pytest.mark.parametrize("distance", SAMPLED)
def test_the_rollout_before_and_the_potentials_survive_a_save(small, chase, tmp_path, distance):
    settings = {"distance": distance, "embedding": "state_visitation", "embedding_horizon": 4, **EPOCHS}
    model = small(BGPG, chase(), **settings).learn(96)
    model.save(tmp_path / "model")
    loaded = BGPG.load(tmp_path / "model", device="cpu")
    assert torch.equal(loaded.penalty.memory.points, model.penalty.memory.points)
    torch.testing.assert_close(loaded.penalty.state_dict(), model.penalty.state_dict(), rtol=0, atol=0)
    loaded.set_env(model.env)
    loaded.set_logger(configure(None, []))
    assert loaded.learn(32, reset_num_timesteps=False).num_timesteps == 128


def test_the_epochs_have_a_rate_of_their_own(small, chase, fill):
    """It moves the actor and leaves the critic's Adam at ``learning_rate``; without it there is one rate."""
    trained = {}
    for rate in (1e-5, 1e-2, None):
        model = fill(small(BGWNPG, chase(), learning_rate=1e-2, actor_learning_rate=rate, target_kl=None, seed=0))
        torch.manual_seed(0)
        model.train()
        assert model.policy.optimizer.param_groups[0]["lr"] == 1e-2
        trained[rate] = copy.deepcopy(model)
    slow, fast, shared = trained.values()
    assert all(torch.equal(p, q) for p, q in zip(fast.actor_parameters, shared.actor_parameters, strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(fast.actor_parameters, slow.actor_parameters, strict=True))
    critics = zip(fast.critic_parameters, slow.critic_parameters, shared.critic_parameters, strict=True)
    assert all(torch.equal(p, q) and torch.equal(p, r) for p, q, r in critics)


def test_the_rate_of_the_epochs_may_be_a_schedule(small, chase, fill):
    model = fill(small(BGWNPG, chase(), actor_learning_rate=lambda progress: progress, n_penalized_epochs=1))
    model._current_progress_remaining = 0.0
    before = [parameter.clone() for parameter in model.actor_parameters]
    model.natural_gradient.step = lambda *args: StepReport(False, 0.0, None, None)
    model.train()
    assert all(torch.equal(p, q) for p, q in zip(before, model.actor_parameters, strict=True))


def test_penalised_epochs_end_where_the_cap_is_passed_by_half(small, chase, fill, monkeypatch):
    model = fill(small(BGWNPG, chase(), n_steps=64, target_kl=0.01, n_penalized_epochs=50, policy_batch_size=16))
    measured = iter([0.0, 0.0, 0.014, 0.016, 0.02])
    batch = begun(model, next(model.rollout_buffer.get(batch_size=None)))
    monkeypatch.setattr(GaussianLaw, "kl_divergence", lambda old, law: torch.full((3,), next(measured)))
    model._penalized_epochs(batch)
    assert next(measured) == 0.02


def begun(model, rollout):
    batch = model._policy_batch(rollout)
    model.behavior_penalty.begin(batch.old_law)
    return batch


def test_gradients_of_penalised_epochs_are_cut(small, chase, fill, monkeypatch):
    model = fill(small(BGWNPG, chase(), n_steps=64, n_penalized_epochs=1, policy_batch_size=None, max_grad_norm=1e-3))
    norms, step = [], model.policy.optimizer.step

    def watched():
        norms.append(torch.cat([q.grad.flatten() for q in model.actor_parameters]).norm().item())
        step()

    monkeypatch.setattr(model.policy.optimizer, "step", watched)
    model._penalized_epochs(begun(model, next(model.rollout_buffer.get(batch_size=None))))
    assert norms == pytest.approx([1e-3], rel=1e-4)


def test_many_windows_are_warned_of(small, monkeypatch):
    monkeypatch.setattr(guidance, "MANY_WINDOWS", 3)
    settings = {"embedding": "final_state", "embedding_horizon": 4, "distance": "sinkhorn"}
    with pytest.warns(UserWarning, match=r"\d+ windows of behaviour are transported.*embedding_horizon makes fewer"):
        small(BGPG, **settings).learn(32)
