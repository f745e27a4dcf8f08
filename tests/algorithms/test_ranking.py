"""Ranks of embeddings: what they say where the answer is known, and that asking leaves no trace."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import SimpleMultiObsEnv

from sb3_wng import NPG, PG, WNPG, rank_embeddings
from sb3_wng.algorithms import format_table
from sb3_wng.algorithms.behavior_samples import STATE_EMBEDDINGS
from sb3_wng.algorithms.ranking import CONTROLS, _Rollout
from sb3_wng.behavior import EMBEDDINGS, BehaviorCallback

SETTINGS = {"n_basis": 6, "embedding_horizon": 8}


def mean_observation(trajectory):
    return trajectory.observations.mean(dim=0)[:2]


def model_of(cls=WNPG, env="Pendulum-v1", **settings):
    defaults = {"n_steps": 256, "batch_size": 64, "n_critic_updates": 2, "seed": 0, "policy_kwargs": {"net_arch": [8]}}
    return cls("MlpPolicy", env, **{**defaults, **settings})


def ranks_of(model, *embeddings, **settings):
    return {rank.embedding: rank for rank in rank_embeddings(model, embeddings or None, **{**SETTINGS, **settings})}


def state_of(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize("cls", [WNPG, NPG, PG])
def test_every_embedding_and_control_is_ranked_best_first(cls, env):
    model = model_of(cls, env)
    ranks = rank_embeddings(model, **SETTINGS)
    assert {rank.embedding for rank in ranks} == {*CONTROLS, *STATE_EMBEDDINGS, *EMBEDDINGS}
    gains = [rank.held_out_gain for rank in ranks]
    assert gains == sorted(gains, reverse=True)
    for rank in ranks:
        assert np.isfinite([rank.action_gain, rank.kl_gain, rank.own_gain, rank.closed_form_gain]).all()
        assert rank.damping in (0.01, 0.1, 1.0)
        assert math.isnan(rank.effective_rank) == (rank.embedding in CONTROLS)
        is_of_steps = rank.embedding in (*CONTROLS, *STATE_EMBEDDINGS)
        assert rank.n_samples == 256 if is_of_steps else 32 <= rank.n_samples < 100


def test_only_metrics_from_scores_have_noise():
    with_noise = {name for name, rank in ranks_of(model_of()).items() if not math.isnan(rank.noise)}
    assert with_noise == {name for name, embedding in EMBEDDINGS.items() if not embedding.is_pathwise}
    discrete = {name for name, rank in ranks_of(model_of(env="CartPole-v1")).items() if not math.isnan(rank.noise)}
    assert discrete == {*STATE_EMBEDDINGS, *EMBEDDINGS}


def test_no_direction_gains_more_per_action_or_kl_than_the_metric_of_that_length():
    ranks = ranks_of(model_of(cg_max_steps=60), dampings=(1e-6,))
    for rank in ranks.values():
        assert rank.action_gain <= ranks["closed_form"].action_gain * 1.001
        assert rank.kl_gain <= ranks["fisher"].kl_gain * 1.001


def test_a_gain_is_that_of_the_surrogate_for_a_small_step_of_known_length():
    model = model_of()
    (rank,) = (rank for rank in rank_embeddings(model, [], **SETTINGS) if rank.embedding == "euclidean")
    batch = model._policy_batch(next(model.rollout_buffer.get(batch_size=None)))
    estimate = model.policy_gradient(batch)
    before = model.measure(batch).objective
    with torch.no_grad():
        for parameter, step in zip(
            model.actor_parameters,
            (1e-2 * estimate.gradient / estimate.gradient.norm()).split([q.numel() for q in model.actor_parameters]),
            strict=True,
        ):
            parameter += step.view_as(parameter)
    after = model.measure(batch)
    length = math.sqrt(after.wasserstein_distance / batch.old_law.spread().item())
    assert (after.objective - before) / length == pytest.approx(rank.action_gain, rel=0.02)
    assert (after.objective - before) / math.sqrt(2 * after.kl_divergence) == pytest.approx(rank.kl_gain, rel=0.02)


def test_with_one_spread_and_fixed_means_the_two_lengths_differ_by_the_weight_of_the_spread():
    """KL counts a relative change of the spread twice, W2 once: a direction of the spread alone shows the root of two."""

    def constant(trajectory):
        return 0.0

    model = model_of()
    for parameter in model.actor_parameters:
        parameter.requires_grad_(parameter is model.policy.log_std)
    model.actor_parameters = [model.policy.log_std]
    rank = ranks_of(model, constant)["closed_form"]
    assert rank.action_gain == pytest.approx(math.sqrt(2) * rank.kl_gain, rel=1e-4)


def test_own_and_action_movement_are_the_same_for_the_closed_form():
    rank = ranks_of(model_of())["closed_form"]
    assert rank.own_gain == rank.closed_form_gain == rank.held_out_gain


def test_noise_tells_an_embedding_that_the_policy_moves_from_one_that_it_does_not():
    torch.manual_seed(0)
    unrelated = iter(torch.randn(10_000))

    def chance(trajectory):
        return float(next(unrelated))

    def torque(trajectory):
        return trajectory.actions.sum()

    ranks = ranks_of(model_of(n_steps=2048), chance, torque, n_basis=2)
    assert ranks["torque"].noise < 0.2 < ranks["chance"].noise


def test_a_rank_does_not_depend_on_what_else_is_ranked():
    model = model_of()
    both = ranks_of(model, "final_state", mean_observation)
    assert ranks_of(model, mean_observation)["mean_observation"] == both["mean_observation"]
    assert ranks_of(model, mean_observation, seed=1)["mean_observation"] != both["mean_observation"]


def test_a_filled_buffer_is_used_as_it_is_and_an_empty_one_is_filled():
    model = model_of()
    model.learn(256)
    observations, steps = model.rollout_buffer.observations.copy(), model.num_timesteps
    rank_embeddings(model, ["final_state"], **SETTINGS)
    assert model.num_timesteps == steps
    np.testing.assert_array_equal(model.rollout_buffer.observations, observations)
    fresh = model_of()
    rank_embeddings(fresh, ["final_state"], **SETTINGS)
    assert fresh.num_timesteps == 256
    assert fresh.rollout_buffer.full


def test_training_goes_on_as_if_nobody_had_asked():
    class Ask(BaseCallback):
        ranks = None

        def _on_step(self):
            return True

        def _on_rollout_end(self):
            self.ranks = rank_embeddings(self.model, ["actions", "final_state", mean_observation], **SETTINGS)

    settings = {"metric": "kernel", "n_basis": 6, "embedding": "actions_and_values"}
    callback = Ask()
    asked = model_of(**settings).learn(768, callback=callback)
    unasked = model_of(**settings).learn(768)
    assert len(callback.ranks) == 6
    for name, value in asked.policy.state_dict().items():
        assert torch.equal(value, unasked.policy.state_dict()[name]), name
    assert torch.equal(asked.kernel_metric.generator.get_state(), unasked.kernel_metric.generator.get_state())


def test_asking_an_untrained_model_changes_no_parameter_and_writes_no_log(tmp_path):
    model = model_of(tensorboard_log=str(tmp_path), metric="kernel")
    before, generator = state_of(model), model.kernel_metric.generator.get_state()
    rank_embeddings(model, ["actions"], **SETTINGS)
    assert all(torch.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    assert all(parameter.grad is None for parameter in model.policy.parameters())
    assert torch.equal(model.kernel_metric.generator.get_state(), generator)
    assert model.tensorboard_log == str(tmp_path)
    assert not list(tmp_path.iterdir())
    model.learn(256)


def test_a_loaded_model_without_an_environment_is_refused(tmp_path):
    model = model_of()
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"model: .*empty.* no env"):
        rank_embeddings(WNPG.load(tmp_path / "model"))
    loaded = WNPG.load(tmp_path / "model", env=gym.make("Pendulum-v1"))
    assert rank_embeddings(loaded, ["final_state"], **SETTINGS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embeddings": "final_state"}, r"embeddings must be a sequence"),
        ({"embeddings": 3}, r"embeddings must be a sequence"),
        ({"embeddings": ["foo"]}, r"embeddings: .*reward_to_go.*'foo'.*actions_and_values"),
        ({"embeddings": [3]}, r"embeddings: .*got 3"),
        ({"embeddings": ["actions", "actions"]}, r"embeddings must have different names.*'actions'"),
        ({"n_basis": 0}, r"n_basis must be an integer >= 1, got 0"),
        ({"n_basis": 2.5}, r"n_basis must be an integer >= 1"),
        ({"embedding_horizon": 0}, r"embedding_horizon must be an integer >= 1, got 0"),
        ({"embedding_horizon": 200}, r"embedding_horizon=200 leaves a half of the rollout [01] windows"),
        ({"dampings": ()}, r"dampings must be a sequence of finite numbers > 0"),
        ({"dampings": (0.1, 0.0)}, r"dampings must be a sequence of finite numbers > 0"),
        ({"dampings": 0.1}, r"dampings must be a sequence of finite numbers > 0"),
        ({"dampings": (math.nan,)}, r"dampings must be a sequence of finite numbers > 0"),
        ({"log_bandwidth": math.inf}, r"log_bandwidth must be a finite number"),
        ({"seed": -1}, r"seed must be an integer >= 0, got -1"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        rank_embeddings(model_of(), **arguments)


def test_a_model_of_another_family_is_refused():
    with pytest.raises(ValueError, match="model must be a WNPG, NPG, PG, BGPG or BGWNPG, got PPO"):
        rank_embeddings(PPO("MlpPolicy", "Pendulum-v1"))


def test_the_table_has_a_row_for_each_rank_and_leaves_out_what_has_no_meaning():
    ranks = rank_embeddings(model_of(), ["final_state"], **SETTINGS)
    header, rule, *rows = format_table(ranks).splitlines()
    assert len({line.count("|") for line in (header, rule, *rows)}) == 1
    assert [row.split(" | ")[0].lstrip("| ") for row in rows] == [rank.embedding for rank in ranks]
    assert "nan" not in format_table(ranks)


def test_halves_share_no_step_and_no_window_and_take_turns_over_the_environments():
    model = model_of(env=make_vec_env("Pendulum-v1", 3), n_steps=64)
    ranks_of(model)
    rollout = _Rollout(model, 8, 6, 1.0, 0)
    first, second = rollout.halves
    first_of_0, first_of_1, first_of_2 = torch.arange(32), torch.arange(96, 128), torch.arange(128, 160)
    assert torch.equal(first.steps, torch.cat([first_of_0, first_of_1, first_of_2]))
    for part in ("steps", "windows"):
        both = torch.cat([getattr(first, part), getattr(second, part)])
        assert torch.equal(both.sort().values, getattr(rollout.whole, part))


class Ranking(BaseCallback):
    """Ranks at the end of every rollout, once with a function that sees its rewards."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        def rewards(trajectory):
            self.seen.append(trajectory.rewards)
            return trajectory.rewards.sum()

        rank_embeddings(self.model, [rewards], **SETTINGS)


class Counted(gym.Wrapper):
    """Pays the number of steps since it was made."""

    steps = 0

    def step(self, action):
        observation, _, terminated, truncated, info = super().step(action)
        self.steps += 1
        return observation, float(self.steps), terminated, truncated, info


def counted(name):
    np.random.seed(0)  # noqa: NPY002  # SimpleMultiObsEnv draws from it when it is made
    return Counted(SimpleMultiObsEnv() if name == "dict" else gym.make("Pendulum-v1"))


@pytest.mark.parametrize("env", ["box", "dict"])
def test_asking_at_the_end_of_a_rollout_is_about_that_rollout_and_leaves_it_alone(env):
    ranking, behavior = Ranking(), BehaviorCallback(lambda trajectory: trajectory.actions.sum(), embedding_horizon=8)
    policy = "MultiInputPolicy" if env == "dict" else "MlpPolicy"
    kwargs = {"features_extractor_kwargs": {"cnn_output_dim": 8}} if env == "dict" else {}
    settings = {
        "n_steps": 64,
        "batch_size": 64,
        "n_critic_updates": 1,
        "seed": 0,
        "policy_kwargs": {"net_arch": [8], **kwargs},
    }
    model = WNPG(policy, counted(env), **settings).learn(128, [ranking, behavior])
    rewards = torch.cat(ranking.seen).unique()
    assert rewards.tolist() == list(range(1, 129))
    assert behavior.n_rollouts == 2
    undisturbed = WNPG(policy, counted(env), **settings).learn(128)
    for name, value in undisturbed.policy.state_dict().items():
        assert torch.equal(model.policy.state_dict()[name], value)


def test_a_held_out_gain_is_that_of_the_other_half():
    model = model_of().learn(256)
    (fisher,) = [r for r in rank_embeddings(model, ["actions"], 6, 8, dampings=(0.1,)) if r.embedding == "fisher"]
    rollout = _Rollout(model, 8, 6, 1.0, 0)
    metric, gains = rollout.control("fisher"), []
    for mine, theirs in ((0, 1), (1, 0)):
        direction = metric.halves[mine].solve(rollout.halves[mine].gradient, 0.1)
        gains.append(rollout.halves[theirs].gain(direction, metric.halves[theirs]))
    assert fisher.own_gain == pytest.approx(np.mean(gains), rel=1e-4)


def test_the_damping_is_the_one_with_the_largest_held_out_gain():
    model = model_of().learn(256)
    dampings = (0.001, 0.1, 10.0)
    chosen = {r.embedding: r for r in rank_embeddings(model, None, 6, 8, dampings)}
    for damping in dampings:
        for rank in rank_embeddings(model, None, 6, 8, (damping,)):
            assert chosen[rank.embedding].held_out_gain >= rank.held_out_gain - 1e-9
