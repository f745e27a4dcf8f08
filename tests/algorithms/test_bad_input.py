"""Mistakes end in a message that says which argument or which part of the environment is wrong."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy

from sb3_wng import BGPG, BGWNPG, NPG, PG, WNES, WNPG, ImplicitPolicy
from sb3_wng.behavior import FinalState

ALL = (WNPG, NPG, PG, BGPG, BGWNPG)
NAN, INF = float("nan"), float("inf")

# argument, bad values, who takes the argument
BAD = [
    ("metric", ["foo", "Kernel", None], (WNPG,)),
    ("step_rule", ["foo", None], (WNPG,)),
    ("target_distance", [0, -0.1, NAN, INF], (WNPG,)),
    ("target_kl", [0, -0.1, NAN], ALL),
    ("step_size", [0, -0.1, NAN], (WNPG,)),
    ("std_weight", [0, -1.0, NAN], (WNPG,)),
    ("max_grad_norm", [0, -1.0], (WNPG, PG)),
    ("cg_damping", [-0.1, NAN, INF], (WNPG, NPG)),
    ("cg_max_steps", [0, -1, 1.5], (WNPG, NPG)),
    ("line_search_shrinking_factor", [0.0, 1.0, 1.5, NAN], (WNPG, NPG)),
    ("line_search_max_iter", [-1], (WNPG, NPG)),
    ("n_basis", [0, -1, 1.5], (WNPG,)),
    ("sub_sampling_factor", [0, -1, 1.5], (WNPG, NPG)),
    ("n_policy_updates", [0, -1, 1.5], ALL),
    ("policy_batch_size", [0, -1, 1.5], (WNPG, PG)),
    ("n_critic_updates", [-1, 1.5], ALL),
    ("wasserstein_coef", [NAN, INF, None, "0.1"], (BGPG, BGWNPG)),
    ("entropic_reg", [0, -0.1, NAN], (BGPG, BGWNPG)),
    ("n_penalized_epochs", [-1, 1.5], (BGWNPG,)),
    ("actor_learning_rate", [0, -0.1, NAN, "lin_0.1"], (BGWNPG,)),
    ("gamma", [10, -0.1, NAN], ALL),
    ("gae_lambda", [1.1, NAN], ALL),
    ("n_steps", [0, -1], ALL),
    ("batch_size", [0, -1, 1.5], ALL),
]
TABLE = [(cls, name, value) for name, values, classes in BAD for value in values for cls in classes]


@pytest.mark.parametrize(("cls", "name", "value"), TABLE, ids=[f"{c.__name__}-{n}={v}" for c, n, v in TABLE])
def test_the_message_names_the_bad_argument(small, cls, name, value):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        small(cls, **{name: value})


@pytest.mark.parametrize("name", ["target_distance", "target_kl", "step_size", "actor_learning_rate"])
def test_a_schedule_must_start_above_zero(small, name):
    with pytest.raises(ValueError, match=rf"\b{name} at the start\b"):
        small(BGWNPG, **{name: lambda progress: 0.1 * (1 - progress)})


# None where a number is needed, text where RL-Zoo parses only learning rates, numbers that are not, whole ones as floats
WRONG_TYPES = [
    *[(name, None) for name in ("target_distance", "std_weight", "step_size", "max_grad_norm", "cg_damping")],
    *[(name, None) for name in ("batch_size", "n_policy_updates", "n_critic_updates", "cg_max_steps", "n_basis")],
    *[(name, "lin_0.1") for name in ("target_distance", "target_kl", "step_size", "cg_damping", "batch_size")],
    *[(name, value) for name in ("batch_size", "n_basis") for value in (NAN, INF)],
    *[(name, 32.0) for name in ("batch_size", "n_steps", "n_policy_updates", "n_critic_updates", "sub_sampling_factor")],
]


@pytest.mark.parametrize(("name", "value"), WRONG_TYPES)
def test_the_message_names_the_argument_of_a_wrong_type(small, name, value):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        small(WNPG, **{name: value})


@pytest.mark.parametrize("settings", [{"metric": "kernel"}, {"adaptive_damping": True}], ids=str)
def test_an_undamped_metric_is_refused_where_it_has_no_inverse(small, settings):
    with pytest.raises(ValueError, match="cg_damping"):
        small(WNPG, cg_damping=0, **settings)


def test_an_undamped_metric_is_accepted_where_products_are_enough(small):
    assert small(WNPG, cg_damping=0).learn(32)._n_updates == 1


def test_minibatches_are_refused_in_a_trust_region_which_must_hold_on_the_whole_rollout(small):
    with pytest.raises(ValueError, match="policy_batch_size must be None"):
        small(WNPG, policy_batch_size=16)


def test_a_fixed_rate_on_normalised_advantages_is_warned_of(small):
    with pytest.warns(UserWarning, match="the gradient of such advantages grows as 1/spread"):
        small(WNPG, step_rule="fixed_rate", normalize_advantage=True)


@pytest.mark.parametrize("policy_batch_size", [1, 31])
def test_minibatches_of_one_sample_are_refused_where_a_metric_is_estimated_from_them(small, policy_batch_size):
    settings = {"metric": "kernel", "step_rule": "optimizer", "n_steps": 32}
    with pytest.raises(ValueError, match="policy_batch_size"):
        small(WNPG, policy_batch_size=policy_batch_size, **settings)


@pytest.mark.parametrize("cls", [WNPG, NPG])
def test_a_fisher_trust_region_needs_target_kl(small, cls):
    metric = {"metric": "fisher"} if cls is WNPG else {}
    with pytest.raises(ValueError, match="target_kl"):
        small(cls, target_kl=None, **metric)


# --- policies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["foo", "SACPolicy", ""])
def test_unknown_policies_are_refused_by_name(build, policy):
    with pytest.raises(ValueError, match=f"(?i)policy.*{policy}"):
        build("Pendulum-v1", policy)


@pytest.mark.parametrize("policy", [SACPolicy, TD3Policy])
def test_policies_without_a_law_of_actions_are_refused(build, policy):
    with pytest.raises(ValueError, match=f"policy.*{policy.__name__}"):
        build("Pendulum-v1", policy)


@pytest.mark.parametrize("policy", ["LinearPolicy", "ToeplitzPolicy", "ImplicitPolicy", ImplicitPolicy])
def test_policies_that_only_evolution_strategies_train_are_refused_with_the_reason(build, policy):
    name = policy if isinstance(policy, str) else policy.__name__
    with pytest.raises(ValueError, match=rf"policy: {name} .* no likelihood gradient and no KL.*Evolution strategies \(ES"):
        build("Pendulum-v1", policy)


class Frozen(ActorCriticPolicy):
    frozen = "mlp_extractor.policy_net", "action_net", "log_std"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith(self.frozen))


class FrozenCritic(Frozen):
    frozen = "mlp_extractor.value_net", "value_net"


def test_actors_with_nothing_to_train_are_refused(build):
    with pytest.raises(ValueError, match=r"policy.*Frozen"):
        build("Pendulum-v1", Frozen)


def test_critics_may_have_nothing_to_train(build):
    model = build("Pendulum-v1", FrozenCritic)
    assert not model.critic_parameters
    before = [q.detach().clone() for q in model.actor_parameters]
    model.learn(64)
    assert not all(torch.equal(q, p) for q, p in zip(model.actor_parameters, before, strict=True))


def test_unsupported_action_spaces_are_refused(build, chase):
    with pytest.raises(AssertionError, match="action space"):
        build(chase(spaces.Dict({"a": spaces.Discrete(2)})))


# --- rollouts --------------------------------------------------------------------------------------


def test_one_transition_cannot_be_normalised(build):
    with pytest.raises(AssertionError, match=r"n_steps.*n_envs"):
        build(n_steps=1, batch_size=1)
    with pytest.raises(AssertionError, match=r"n_steps.*n_envs"):
        build(make_vec_env("CartPole-v1", n_envs=1), n_steps=1, batch_size=1)


def test_one_transition_is_enough_without_normalisation(small, weights):
    model = small(WNPG, n_steps=1, batch_size=1, normalize_advantage=False)
    assert torch.isfinite(weights(model.learn(5))).all()


def test_truncated_minibatches_are_announced(build, recwarn):
    with pytest.warns(UserWarning, match="truncated mini-batch of size 8"):
        build(n_steps=32, batch_size=12)
    recwarn.clear()
    build(n_steps=32, batch_size=16)
    assert not [warning for warning in recwarn if "mini-batch" in str(warning.message)]


# --- environments ----------------------------------------------------------------------------------


class Broken(gym.Env):
    """Returns a bad number in an observation, or as the reward, once, after so many steps."""

    def __init__(self, broken, value, at, action_space, is_dict=False, episode_length=1000):
        self.broken, self.value, self.at, self.is_dict = broken, value, at, is_dict
        self.action_space = action_space
        box = spaces.Box(-1, 1, (3,))
        self.observation_space = spaces.Dict({"fine": box, "odd": box}) if is_dict else box
        self.episode_length = episode_length
        self.steps = 0

    def observe(self):
        good, odd = self.np_random.uniform(-1, 1, (2, 3)).astype(np.float32)
        if self.broken == "observations" and self.steps == self.at:
            odd[1] = self.value
        return {"fine": good, "odd": odd} if self.is_dict else odd

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        reward = self.value if self.broken == "rewards" and self.steps == self.at else 1.0
        return self.observe(), reward, False, self.steps % self.episode_length == 0, {}


def check_that_it_is_refused(model, what):
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    with pytest.raises(ValueError, match=rf"env\b.*\b{what}"):
        model.learn(model.n_steps * model.n_envs)
    torch.testing.assert_close(dict(model.policy.state_dict()), before, rtol=0, atol=0)
    assert model._n_updates == 0


BOX = spaces.Box(-1, 1, (2,))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("broken", ["rewards", "observations"])
def test_numbers_that_are_not_finite_are_refused_before_anything_is_learnt(build, broken, value):
    check_that_it_is_refused(build(Broken(broken, value, at=5, action_space=BOX)), broken)


@pytest.mark.parametrize("at", [0, 1, 31, 32])
def test_bad_observations_are_found_wherever_they_occur(build, at):
    # the one after the last step is not in the rollout, but its value is in the returns
    check_that_it_is_refused(build(Broken("observations", NAN, at=at, action_space=BOX)), "observations")


@pytest.mark.parametrize("at", [1, 32])
def test_bad_rewards_are_found_wherever_they_occur(build, at):
    check_that_it_is_refused(build(Broken("rewards", NAN, at=at, action_space=BOX)), "rewards")


@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)])
@pytest.mark.parametrize("at", [5, 32])
def test_bad_observations_are_refused_with_discrete_actions(small, action_space, at):
    check_that_it_is_refused(small(WNPG, Broken("observations", NAN, at=at, action_space=action_space)), "observations")


def test_bad_observations_are_refused_with_state_dependent_exploration(build):
    env = Broken("observations", NAN, at=5, action_space=BOX)
    check_that_it_is_refused(build(env, use_sde=True), "observations")


def test_bad_entries_of_dictionaries_are_refused(build):
    env = Broken("observations", NAN, at=5, action_space=BOX, is_dict=True)
    check_that_it_is_refused(build(env, "MultiInputPolicy"), "observations")


def test_the_message_says_where_a_bad_reward_occurred(small):
    envs = [lambda at=at: Broken("rewards", NAN, at=at, action_space=BOX) for at in (-1, 7)]
    model = small(WNPG, DummyVecEnv(envs))
    with pytest.raises(ValueError, match="step 6 of the rollout, environment 1"):
        model.learn(64)


def test_bad_final_observations_of_truncated_episodes_are_refused(build):
    # SB3 adds their value to the last reward
    env = Broken("observations", NAN, at=16, action_space=BOX, episode_length=16)
    check_that_it_is_refused(build(env), "(rewards|observations)")


def test_an_error_of_the_environment_stays_as_it_is(build):
    class Faulty(Broken):
        def step(self, action):
            raise ValueError("out of fuel")

    with pytest.raises(ValueError, match=r"^out of fuel$"):
        build(Faulty("nothing", 0.0, at=0, action_space=BOX)).learn(32)


# --- embeddings and what they have no effect on -----------------------------------------------------


class Flat:
    is_pathwise = False

    def __call__(self, trajectories):
        return trajectories.rewards.sum(dim=1)


@pytest.mark.parametrize(("cls", "settings"), [(WNPG, {"metric": "kernel"}), (BGPG, {"distance": "sinkhorn"})])
def test_an_embedding_object_that_returns_no_points_is_named(small, cls, settings):
    model = small(cls, embedding=Flat(), embedding_horizon=4, **settings)
    with pytest.raises(ValueError, match=r"embedding 'Flat' must return points of shape \(n, d\)"):
        model.learn(64)


class Changing:
    """Points of one dimension more at every call, or not finite."""

    is_pathwise = False

    def __init__(self, value=0.0):
        self.value, self.n_calls = value, 0

    def __call__(self, trajectories):
        self.n_calls += 1
        return trajectories.rewards[:, :1].repeat(1, 1 if self.value else self.n_calls) + self.value


@pytest.mark.parametrize(("cls", "settings"), [(WNPG, {"metric": "kernel"}), (BGPG, {"distance": "sinkhorn"})])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_embedding_object_that_returns_numbers_that_are_not_finite_is_named(small, cls, settings, value):
    model = small(cls, embedding=Changing(value), embedding_horizon=4, **settings)
    with pytest.raises(ValueError, match="embedding 'Changing' returned non-finite numbers"):
        model.learn(64)


def test_an_embedding_that_changes_its_dimension_between_rollouts_is_refused(small):
    model = small(BGPG, embedding=Changing(), embedding_horizon=4, distance="sinkhorn")
    with pytest.raises(ValueError, match="embedding: its points have dimension 2, in the rollout before they had 1"):
        model.learn(2 * 64)


@pytest.mark.parametrize("value", [NAN, "1", None, 1000.0])
def test_bandwidths_out_of_range_are_refused(small, value):
    with pytest.raises(ValueError, match="log_bandwidth must be a number from -10 to 10"):
        small(WNPG, metric="kernel", log_bandwidth=value)
    with pytest.raises(ValueError, match="log_bandwidth must be a number from -10 to 10"):
        WNES("MlpPolicy", "CartPole-v1", log_bandwidth=value)


def test_a_single_window_is_warned_of(small):
    settings = {"n_steps": 32, "embedding_horizon": 32, "policy_batch_size": None}
    model = small(BGPG, "Pendulum-v1", distance="sinkhorn", embedding="final_state", **settings).learn(32)
    with pytest.warns(UserWarning, match="a single window of behaviour.*Lower embedding_horizon"):
        model.learn(32, reset_num_timesteps=False)


def test_pooled_actions_are_warned_of(small):
    with pytest.warns(UserWarning, match="distance='dual' with embedding='actions' compares the actions of all states"):
        small(BGPG, "Pendulum-v1", distance="dual")


def test_a_class_is_no_embedding(small):
    with pytest.raises(ValueError, match=r"not a class: pass FinalState\(\)"):
        small(WNPG, metric="kernel", embedding=FinalState)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding": "final_state"}, "embedding has no effect with metric='closed_form'"),
        ({"metric": "combined", "diagonal_damping": True}, "diagonal_damping has no effect with metric='combined'"),
        ({"max_grad_norm": 1.0}, "max_grad_norm has no effect with step_rule='trust_region'"),
        ({"step_size": 0.2}, "step_size has no effect with step_rule='trust_region'"),
    ],
)
def test_what_has_no_effect_is_warned_of(small, settings, message):
    with pytest.warns(UserWarning, match=message):
        small(WNPG, **settings)
    with pytest.raises(ValueError, match="embedding must be"):
        small(WNPG, embedding="nonsense")


@pytest.mark.parametrize("settings", [{"step_rule": "fixed_rate"}, {"embedding": "final_state"}])
def test_warnings_name_the_line_that_made_the_model(settings):
    with pytest.warns(UserWarning, match="step_rule='fixed_rate' with|no effect") as warned:
        WNPG("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=32, **settings)
    assert {warning.filename for warning in warned} == {__file__}


def test_a_target_that_nothing_aims_at_is_warned_of(small, recwarn):
    with pytest.warns(UserWarning, match="target_distance has no effect without adaptive_coef=True"):
        small(BGPG, target_distance=0.5)
    recwarn.clear()
    with pytest.warns(UserWarning, match="without a penalty, with step_rule='trust_region' and metric='fisher'"):
        WNPG("MlpPolicy", "Pendulum-v1", metric="fisher", target_distance=0.5, n_steps=32, batch_size=32)
    recwarn.clear()
    small(BGPG, target_distance=0.5, adaptive_coef=True)
    small(WNPG, target_distance=0.5)
    assert not [str(warning.message) for warning in recwarn if "target_distance" in str(warning.message)]


@pytest.mark.parametrize("value", [-1, 0.5])
def test_the_interval_of_adaptive_damping_is_an_integer(small, value):
    with pytest.raises(ValueError, match="adaptive_damping must be an integer >= 0"):
        small(WNPG, adaptive_damping=value)


def test_a_law_of_trajectories_needs_two_of_them(small):
    with pytest.raises(ValueError, match="embedding_horizon=32 makes one trajectory of a rollout of 1 x 32 steps"):
        small(WNPG, "Pendulum-v1", metric="kernel", embedding="final_state", n_steps=32)


def test_the_epochs_minibatches_are_nothing_to_a_trust_regions_kernel_metric(small):
    """Its natural step sees the whole rollout."""
    settings = {"metric": "kernel", "n_basis": 2, "policy_batch_size": 8, "n_penalized_epochs": 1, "embedding_horizon": 4}
    both = small(BGWNPG, "Pendulum-v1", embedding="final_state", distance="sinkhorn", **settings)
    assert both.learn(64)._n_updates == 2
    assert small(BGWNPG, "Pendulum-v1", n_steps=33, **settings).learn(33)._n_updates == 1
    with pytest.raises(ValueError, match="policy_batch_size must be None for a kernel metric"):
        small(BGWNPG, embedding="final_state", distance="sinkhorn", step_rule="optimizer", **settings)


def test_numpys_numbers_are_numbers(small):
    model = small(WNPG, target_distance=np.float32(0.02), target_kl=np.float64(0.03))
    assert model.learn(32).natural_gradient.step_rule.radius == pytest.approx(0.02)


def test_recurrent_policies_are_refused_by_name(small):
    recurrent = pytest.importorskip("sb3_contrib.common.recurrent.policies").RecurrentActorCriticPolicy
    with pytest.raises(ValueError, match="recurrent policies are not supported"):
        small(WNPG, policy=recurrent)


@pytest.mark.parametrize("cls", [WNPG, PG])
def test_rates_end_at_zero_where_the_last_rollout_goes_past_the_total(small, cls, monkeypatch):
    model = small(cls, learning_rate=lambda remaining: 1e-3 * remaining, n_steps=64)
    rates = []
    monkeypatch.setattr(
        "sb3_wng.algorithms.policy_gradient.fit_critic",
        lambda model, rollout: rates.append(model.policy.optimizer.param_groups[0]["lr"]),
    )
    model.learn(96)
    assert rates == pytest.approx([1e-3 / 3, 0.0])
