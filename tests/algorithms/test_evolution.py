"""Evolution strategies: the estimate, the loop's promises, and what every slot adds."""

import copy
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_wng import BGES, BGWNES, ES, NSRES, WNES, ImplicitPolicy
from sb3_wng.algorithms.actors import NumpyActor, TorchActor
from sb3_wng.algorithms.episodes import run_candidate, run_episode
from sb3_wng.algorithms.evaluation import Outcome
from sb3_wng.algorithms.evaluators import default_horizon
from sb3_wng.algorithms.evolution_policies import EvolutionPolicy, LinearPolicy, ToeplitzPolicy
from sb3_wng.algorithms.observation_normalizer import ObservationNormalizer
from sb3_wng.algorithms.search_direction import (
    antithetic_gradient,
    centered_ranks,
    clip_direction,
    natural_direction,
    shape_fitness,
)
from sb3_wng.algorithms.step_counter import StepCounter
from sb3_wng.algorithms.vec_env_evaluator import VecEnvEvaluator
from sb3_wng.behavior import make_embedding
from sb3_wng.envs import make_batched

SMALL = {"n_delta": 3, "seed": 3, "policy_kwargs": {"net_arch": [4]}}
VARIANTS = {
    "ES": (ES, {}),
    "ES-normalized": (ES, {"normalize_observations": True, "weight_decay": 0.1, "n_episodes": 2}),
    "WNES": (WNES, {"n_basis": 1, "learning_rate": 0.1}),
    "BGES": (BGES, {}),
    "BGES-dual": (BGES, {"distance": "dual", "saturation": None}),
    "BGWNES": (BGWNES, {"n_basis": 1, "natural_coef": -1.3, "diagonal_damping": True}),
    "NSRES": (NSRES, {"n_parents": 2}),
}
FIXED_LENGTH = {"embedding_horizon": 20}


@pytest.fixture(params=VARIANTS)
def build(request):
    """``build(env, policy, **settings)`` is a small strategy, of each kind in turn."""
    cls, defaults = VARIANTS[request.param]
    return lambda env="CartPole-v1", policy="MlpPolicy", **settings: cls(policy, env, **{**SMALL, **defaults, **settings})


def vector(model):
    return torch.as_tensor(model.policy.parameters_to_vector().copy())


def test_gradient_of_a_quadratic_is_exact_in_expectation():
    generator = torch.Generator().manual_seed(0)
    matrix, theta = torch.randn(4, 4, generator=generator), torch.randn(4, generator=generator)
    noise = torch.randn(200_000, 4, generator=generator)
    parameters = torch.stack([theta + 0.2 * noise, theta - 0.2 * noise], dim=1).flatten(end_dim=1)
    fitness = ((parameters @ matrix) * parameters).sum(dim=1)
    gradient = antithetic_gradient(fitness, noise, 0.2)
    torch.testing.assert_close(gradient, (matrix + matrix.T) @ theta, atol=0.06, rtol=0)


@pytest.mark.parametrize("diagonal_damping", [False, True])
@pytest.mark.parametrize("natural_coef", [1.0, 0.4, -1.3])
def test_direction_interpolates_between_gradient_and_the_dense_solve(natural_coef, diagonal_damping):
    generator = torch.Generator().manual_seed(1)
    factor, gradient = torch.randn(3, 6, generator=generator).double(), torch.randn(6, generator=generator).double()
    scaled = factor / (factor.square().sum() / 3).sqrt()
    norms = scaled.norm(dim=0)
    inverse = norms / norms.mean() + 1e-3 if diagonal_damping else torch.ones(6).double()
    natural = torch.linalg.solve(scaled.T @ scaled + 0.2 * torch.diag(inverse), gradient)
    expected = (1 - natural_coef) * gradient / inverse + natural_coef * 0.2 * natural
    direction = natural_direction(gradient, 100 * factor, 0.2, natural_coef, diagonal_damping)
    torch.testing.assert_close(direction, expected * gradient.norm() / expected.norm())
    assert direction @ gradient > 0


def test_behaviour_that_does_not_depend_on_the_parameters_leaves_the_gradient():
    gradient = torch.ones(4)
    assert torch.equal(natural_direction(gradient, torch.zeros(2, 4), 0.1, 1.0), gradient)


def test_equal_values_share_their_rank():
    ranks = centered_ranks(torch.tensor([3.0, 1.0, 1.0, 7.0, 7.0]))
    torch.testing.assert_close(ranks, torch.tensor([0.0, -0.375, -0.375, 0.375, 0.375]))


def test_utilities_are_logarithms_of_ranks_of_which_the_worse_half_counts_alike():
    values = torch.tensor([3.0, -50.0, 1.0, 900.0, 7.0, 2.0])
    raw = torch.tensor([math.log(4 / 3), 0, 0, math.log(4), math.log(2), 0])  # ranks 3, 6, 5, 1, 2, 4 of 6
    expected = (raw - raw.mean()) / raw.std(correction=0)
    torch.testing.assert_close(shape_fitness(values, "utility"), expected)
    torch.testing.assert_close(shape_fitness(values.exp().clamp(max=1e30), "utility"), expected)
    tied = shape_fitness(torch.tensor([3.0, -50.0, 1.0, 900.0, 900.0, 2.0]), "utility")
    torch.testing.assert_close(tied[3:5], expected[3:5].mean().expand(2))
    torch.testing.assert_close(tied.mean(), torch.tensor(0.0))


@pytest.mark.parametrize("shaping", ["centered_rank", "standardize", "utility"])
def test_equal_returns_move_nothing(shaping):
    torch.testing.assert_close(shape_fitness(torch.full((6,), 123.4), shaping), torch.zeros(6), rtol=0, atol=1e-7)


def test_clipping_is_in_units_of_noise_and_size():
    direction = torch.full((100,), 2.0)
    clipped, norm = clip_direction(direction, 0.1, 0.05)
    assert norm == pytest.approx(0.2)
    torch.testing.assert_close(clipped, torch.full((100,), 0.5))


@pytest.mark.parametrize("cls", [WNES, BGES, BGWNES, NSRES])
def test_empty_slots_are_es_bit_for_bit(cls):
    off = {"natural_coef": 0.0, "wasserstein_coef": 0.0, "novelty_weight": 0.0}
    names = {WNES: ["natural_coef"], BGES: ["wasserstein_coef"], NSRES: ["novelty_weight"]}
    settings = {name: off[name] for name in names.get(cls, ["natural_coef", "wasserstein_coef"])}
    base = {**SMALL, "fitness_shaping": "standardize", "learning_rate": 0.05}
    expected = ES("MlpPolicy", "CartPole-v1", **base).learn(500)
    model = cls("MlpPolicy", "CartPole-v1", **base, **settings).learn(500)
    assert torch.equal(vector(model), vector(expected))


@pytest.mark.parametrize(
    ("cls", "settings"),
    [(WNES, {"n_basis": 1}), (BGES, {}), (NSRES, {}), (ES, {"max_grad_norm": 0.01}), (ES, {"weight_decay": 0.5})],
)
def test_slots_change_what_is_learnt(cls, settings):
    base = {**SMALL, "learning_rate": 0.05}
    expected = ES("MlpPolicy", "CartPole-v1", **base, fitness_shaping="standardize").learn(500)
    model = cls("MlpPolicy", "CartPole-v1", **base, fitness_shaping="standardize", **settings).learn(500)
    assert not torch.equal(vector(model), vector(expected))


def test_wasserstein_coef_can_be_a_schedule():
    constant, same, fading = (
        vector(BGES("MlpPolicy", "CartPole-v1", wasserstein_coef=coef, **SMALL).learn(500))
        for coef in (-0.5, lambda _: -0.5, lambda progress: -0.5 * progress)
    )
    assert torch.equal(constant, same)
    assert not torch.equal(constant, fading)


@pytest.mark.parametrize("policy", ["MlpPolicy", "LinearPolicy", "ToeplitzPolicy", "ImplicitPolicy"])
def test_parameters_do_not_depend_on_the_number_of_columns(policy):
    settings = {"n_delta": 4, "seed": 0, "normalize_observations": True, "embedding_horizon": 30, "n_basis": 2}
    found = []
    for n_envs in (1, 3, 16):
        env = make_vec_env(
            "Pendulum-v1", n_envs, wrapper_class=gym.wrappers.TimeLimit, wrapper_kwargs={"max_episode_steps": 30}
        )
        found.append(vector(BGWNES(policy, env, **settings).learn(600)))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_networks_that_run_in_torch_do_not_depend_on_the_number_of_columns(chase):
    settings = {**SMALL, "policy_kwargs": {"activation_fn": torch.nn.ELU}}
    one, three = (vector(ES("MlpPolicy", DummyVecEnv([chase] * n_envs), **settings).learn(300)) for n_envs in (1, 3))
    assert torch.equal(one, three)


def test_an_episode_in_a_plain_environment_is_that_of_a_column():
    model = WNES(ImplicitPolicy, make_vec_env("CartPole-v1", 4), **{**SMALL, "n_basis": 1})
    generation, embedding = model._generation(), make_embedding("final_state")
    seen = VecEnvEvaluator(model.get_env(), model.policy, embedding, 500, lambda *_: True)(generation)
    for position, expected in seen:
        candidate = generation.candidates[position]
        outcome = run_candidate(model.policy, gym.make("CartPole-v1"), generation, candidate, embedding, 500)
        assert outcome[:2] == expected[:2]
        np.testing.assert_array_equal(outcome.embedding, expected.embedding)


ACTION_SPACES = [
    spaces.Box(-2, 2, (2,)),
    spaces.Box(0, 5, (2, 2)),
    spaces.Discrete(3),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
]


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=str)
def test_all_action_spaces_train_and_predict(action_space, chase, build):
    model = build(chase(action_space)).learn(300)
    observation = model.observation_space.sample()
    action, _ = model.predict(observation, deterministic=True)
    assert action_space.contains(action)
    if not isinstance(action_space, spaces.Box):  # as tensors, too, where gradients are recorded
        np.testing.assert_array_equal(model.policy._predict(torch.as_tensor(observation)[None], deterministic=True)[0], action)


OBSERVATION_SPACES = {
    "float64": spaces.Box(-1, 1, (2,), np.float64),
    "matrix": spaces.Box(-1, 1, (2, 3)),
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
    "image": spaces.Box(0, 255, (36, 36, 3), np.uint8),
    "dict": spaces.Dict(
        {"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(3), "c": spaces.Box(0, 255, (36, 36, 1), np.uint8)}
    ),
}


@pytest.mark.parametrize("name", OBSERVATION_SPACES)
def test_all_observation_spaces_train_and_predict(name, chase):
    space = OBSERVATION_SPACES[name]
    policy = {"dict": "MultiInputPolicy", "image": "CnnPolicy"}.get(name, "MlpPolicy")
    env = chase(spaces.Discrete(2), space, episode_length=4)
    env.step = _constant_reward(env)
    model = BGES(policy, env, **{**SMALL, "normalize_observations": True}).learn(30)
    observation = model.get_env().reset()
    assert model.predict(observation)[0].shape == (1,)
    outcome = run_episode(model.policy, env, 0, make_embedding("final_state"), 4)
    assert outcome.error is None
    assert outcome.length == 4


def _constant_reward(env):
    def step(action):
        env.steps += 1
        env.observation = env.observation_space.sample()
        return env.observation, 1.0, env.steps == env.episode_length, False, {}

    return step


def test_frame_stack_and_vec_normalize_report_unnormalised_returns():
    env = VecNormalize(VecFrameStack(make_vec_env("CartPole-v1", 2), 2))
    model = BGES("MlpPolicy", env, **SMALL).learn(300)
    assert all(info["r"] == info["l"] for info in model.ep_info_buffer)


def test_numpy_and_torch_act_alike():
    box = spaces.Box(-3, 3, (5,))
    for cls, settings in ((EvolutionPolicy, {"activation_fn": torch.nn.ReLU}), (ToeplitzPolicy, {}), (LinearPolicy, {})):
        policy = cls(box, spaces.Box(-2, 2, (3,)), lambda _: 0.1, normalize_observations=True, **settings)
        observations = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
        policy.normalizer.update([policy.normalizer.moments(3 * observations)])
        parameters = np.stack([policy.parameters_to_vector() + 0.1 * i for i in range(6)])
        generators = [np.random.default_rng(0)] * 6
        fast = NumpyActor(policy, parameters)(observations, generators)
        np.testing.assert_allclose(fast, TorchActor(policy, parameters)(observations, generators), atol=1e-5)
        np.testing.assert_allclose(fast[0], policy.predict(observations[0], deterministic=True)[0], atol=1e-5)


def test_toeplitz_policies_have_the_published_sizes():
    def size(n_in, n_out, width):
        policy = ToeplitzPolicy(spaces.Box(-1, 1, (n_in,)), spaces.Box(-1, 1, (n_out,)), lambda _: 0.1, [width, width])
        return len(policy.parameters_to_vector())

    assert size(6, 2, 16) == 101
    assert size(113, 8, 64) == 502


def test_every_counted_step_is_a_timestep():
    counts = []

    class Count(BaseCallback):
        def _on_step(self):
            counts.append(self.num_timesteps)
            return True

    model = ES("MlpPolicy", "CartPole-v1", **SMALL)
    model.learn(400, callback=Count())
    assert counts == list(range(1, model.num_timesteps + 1))
    assert model.num_timesteps >= 400
    assert sum(info["l"] for info in model.ep_info_buffer) == model.num_timesteps


def test_idle_columns_are_not_counted():
    model = ES("MlpPolicy", make_vec_env("CartPole-v1", 5), **SMALL).learn(300)
    assert sum(info["l"] for info in model.ep_info_buffer) == model.num_timesteps
    assert len(model.ep_info_buffer) == model._n_updates * 7


def test_a_callback_stops_within_the_episode_and_nothing_is_learnt(build):
    class Stop(BaseCallback):
        def _on_step(self):
            return self.num_timesteps < 5

    model = build()
    start = vector(model)
    model.learn(10_000, callback=Stop())
    assert model.num_timesteps == 5
    assert torch.equal(vector(model), start)


def test_a_callback_that_says_no_once_is_heard_at_the_last_step_of_an_iteration():
    class StopOnce(BaseCallback):
        def _on_step(self):
            return self.num_timesteps != 7 * 20

    class Fixed(Drift):
        def step(self, action):
            observation, reward, _, _, info = super().step(action)
            return observation, reward, self.steps == 20, False, info

    model = ES("MlpPolicy", Fixed(), **SMALL)
    model.learn(10_000, callback=StopOnce())
    assert (model.num_timesteps, model._n_updates) == (140, 0)


def test_sb3s_callbacks_work(tmp_path):
    evaluate = EvalCallback(gym.make("CartPole-v1"), eval_freq=100, n_eval_episodes=1, best_model_save_path=str(tmp_path))
    model = ES("MlpPolicy", "CartPole-v1", **SMALL).learn(350, callback=evaluate)
    assert evaluate.n_calls == model.num_timesteps
    assert evaluate.last_mean_reward > 0
    assert ES.load(tmp_path / "best_model").policy.parameters_to_vector().shape == model.policy.parameters_to_vector().shape
    model = ES("MlpPolicy", "CartPole-v1", **SMALL)
    model.learn(10_000, callback=StopTrainingOnMaxEpisodes(9))
    assert len(model.ep_info_buffer) == 9


@pytest.mark.parametrize("name", VARIANTS)
def test_saved_and_loaded_training_continues_as_if_uninterrupted(name, tmp_path):
    cls, defaults = VARIANTS[name]
    settings = {**SMALL, **defaults}
    whole = cls("MlpPolicy", "CartPole-v1", **settings).learn(400)
    done = whole.num_timesteps
    whole.learn(400, reset_num_timesteps=False)
    part = cls("MlpPolicy", "CartPole-v1", **settings).learn(400)
    assert part.num_timesteps == done
    part.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=gym.make("CartPole-v1"))
    observation = np.array([0.1, 0.2, -0.1, 0.3], dtype=np.float32)
    if name != "NSRES":
        assert loaded.predict(observation, deterministic=True)[0] == part.predict(observation, deterministic=True)[0]
    loaded.learn(400, reset_num_timesteps=False)
    assert torch.equal(vector(loaded), vector(whole))


def test_seedless_training_also_resumes_its_own_randomness(tmp_path):
    model = ES("MlpPolicy", "CartPole-v1", **{**SMALL, "seed": None}).learn(100)
    model.save(tmp_path / "model")
    loaded = ES.load(tmp_path / "model", env=gym.make("CartPole-v1"))
    assert loaded._generation().noise_seed == model._generation().noise_seed


def test_policy_alone_keeps_its_normaliser(tmp_path):
    model = ES("MlpPolicy", "Pendulum-v1", **{**SMALL, "n_delta": 1, "normalize_observations": True}).learn(600)
    model.policy.save(tmp_path / "policy")
    loaded = EvolutionPolicy.load(tmp_path / "policy")
    observation = np.array([[0.5, -0.5, 3.0]], dtype=np.float32)
    np.testing.assert_array_equal(loaded.predict(observation)[0], model.predict(observation)[0])
    assert loaded.normalizer.statistics()[""][0, 0] != 0


def test_normaliser_merges_episodes_into_the_statistics_of_all():
    space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    normalizer = ObservationNormalizer(space, True)
    steps = np.random.default_rng(0).normal(size=(50, 2)) + np.array([1000.0, 0.0])
    normalizer.update([normalizer.moments(steps[:20]), normalizer.moments(steps[20:])])
    np.testing.assert_allclose(normalizer.statistics()[""], [steps.mean(axis=0), steps.std(axis=0)])


def test_pairs_share_their_seed_and_pairs_differ():
    seeds = {}
    for choice in ("pair", "iteration", "none"):
        generation = ES("MlpPolicy", "CartPole-v1", common_random_numbers=choice, **SMALL)._generation()
        seeds[choice] = [candidate.seed for candidate in generation.candidates]
    assert seeds["pair"][0] == seeds["pair"][1]
    assert len(set(seeds["pair"])) == 4
    assert len(set(seeds["iteration"])) == 1
    assert len(set(seeds["none"])) == 7


class Faulty(gym.Env):
    """Fails in one of its episodes."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)

    def __init__(self, fault="raise", episode=5):
        self.fault, self.episode, self.episodes = fault, episode, -1  # SB3's learn resets once

    def reset(self, *, seed=None, options=None):
        self.episodes += seed is not None
        self.steps = 0
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action):
        self.steps += 1
        reward, observation = 1.0, np.zeros(2, dtype=np.float32)
        if self.episodes == self.episode:
            if self.fault == "raise":
                raise OSError("simulator diverged")
            reward = np.nan if self.fault == "reward" else 1.0
            observation += np.nan if self.fault == "observation" else 0.0
        return observation, reward, self.steps == 3, False, {}


FAULTS = {"raise": "OSError: simulator diverged", "reward": "reward nan", "observation": "not finite"}


@pytest.mark.parametrize("fault", FAULTS)
def test_failure_of_the_environment_names_iteration_and_seed(fault):
    model = BGES("MlpPolicy", Faulty(fault, episode=9), **SMALL)
    with pytest.raises(RuntimeError, match=rf"iteration [01]: .*{FAULTS[fault]}.*seeds? \[?\d+"):
        model.learn(100)


@pytest.mark.parametrize("fault", FAULTS)
def test_failure_of_the_environment_can_be_a_score(fault):
    model = BGES("MlpPolicy", Faulty(fault), env_failure=-7.0, **SMALL).learn(60)
    assert np.isfinite(model.policy.parameters_to_vector()).all()
    assert model._n_updates >= 2


def test_an_environment_that_always_fails_is_an_error_whatever_the_score(chase):
    env = chase()
    env.step = None
    with pytest.raises(RuntimeError, match="iteration 0: all episodes failed, the first with TypeError"):
        ES("MlpPolicy", env, env_failure=0.0, **SMALL).learn(100)


def test_failure_among_several_columns_is_an_error():
    env = DummyVecEnv([lambda: Faulty(episode=2), lambda: Faulty(episode=99)])
    with pytest.raises(RuntimeError, match=r"iteration 0: OSError: simulator diverged .*\(in one of the episodes with seeds"):
        ES("MlpPolicy", env, env_failure=0.0, **SMALL).learn(100)


def test_archive_gets_every_updated_parent():
    model = NSRES("MlpPolicy", "CartPole-v1", **SMALL).learn(500)
    assert len(model.novelty_bonus.embeddings) == model._n_updates
    assert model.novelty_bonus.embeddings.shape[1] == 4


def test_parents_take_turns_and_keep_their_own_parameters():
    model = NSRES("MlpPolicy", "CartPole-v1", n_parents=3, **SMALL).learn(1500)
    vectors = torch.stack(model.parents.parameter_vectors)
    assert torch.cdist(vectors, vectors).fill_diagonal_(1).min() > 0
    steps = [state["state"][0]["step"].item() for state in model.parents.optimizers]
    assert sum(steps) == model._n_updates
    assert min(steps) >= 1


class Drift(gym.Env):
    """The state moves with the action and had better end at zero."""

    observation_space, action_space = spaces.Box(-np.inf, np.inf, (1,)), spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        self.state, self.steps = np.ones(1, dtype=np.float32), 0
        return self.state.copy(), {}

    def step(self, action):
        self.state = self.state + action
        self.steps += 1
        is_over = self.steps == 3
        return self.state.copy(), -abs(self.state.item()) * is_over, is_over, False, {}


def test_the_larger_the_coefficient_the_nearer_behaviour_stays_to_what_is_remembered():
    distances = []
    for coef in (-3.0, 0.3, 3.0):
        settings = {"n_delta": 10, "seed": 0, "learning_rate": 0.03, "n_previous": 100, "saturation": None}
        model = BGES("MlpPolicy", Drift(), wasserstein_coef=coef, policy_kwargs={"net_arch": []}, **settings)
        model.wasserstein_bonus.update(torch.full((70, 1), 3.0))
        model.learn(25 * 21 * 3)
        last = model.wasserstein_bonus.embeddings[-5:]
        distances.append((last - 3).abs().mean().item())
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.7 * distances[0]


def test_implicit_policy_samples_actions_and_is_trained(tmp_path):
    model = WNES(ImplicitPolicy, "Pendulum-v1", n_delta=2, n_basis=1, seed=0)
    start = vector(model)
    model.learn(900)
    assert not torch.equal(vector(model), start)
    observation = np.zeros((1, 3), dtype=np.float32)
    sampled = [model.predict(observation)[0].item() for _ in range(5)]
    assert len(set(sampled)) == 5
    assert len({model.predict(observation, deterministic=True)[0].item() for _ in range(5)}) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_delta": 0}, "n_delta must be an integer >= 1"),
        ({"delta_std": 0.0}, "delta_std must be a finite number > 0"),
        ({"fitness_shaping": "rank"}, "fitness_shaping must be one of 'centered_rank'"),
        ({"natural_coef": 1.5}, "natural_coef must be <= 1"),
        ({"wasserstein_coef": float("nan")}, "wasserstein_coef must be a finite number"),
        ({"distance": "l2"}, "distance must be one of"),
        ({"embedding": "nowhere"}, "embedding must be a function or one of"),
        ({"damping": 0}, "damping must be a finite number > 0"),
        ({"saturation": 0}, "saturation must be a finite number > 0"),
        ({"env_failure": "ignore"}, "env_failure must be 'raise'"),
        ({"common_random_numbers": "all"}, "common_random_numbers must be one of"),
        ({"n_jobs": 0}, "n_jobs must be an integer >= 1, or -1"),
    ],
)
def test_bad_arguments_are_refused_before_training(settings, message):
    with pytest.raises(ValueError, match=message):
        BGWNES("MlpPolicy", "CartPole-v1", **settings)


def test_policies_with_a_critic_are_refused():
    from stable_baselines3.common.policies import ActorCriticPolicy

    with pytest.raises(ValueError, match="ActorCriticPolicy has a critic"):
        ES(ActorCriticPolicy, "CartPole-v1")


def test_embeddings_of_several_lengths_are_refused(chase):
    env = gym.make("CartPole-v1").unwrapped
    with pytest.raises(ValueError, match="RewardToGo needs the number of steps per episode"):
        BGES("MlpPolicy", chase(), embedding="reward_to_go", **SMALL).learn(10)
    with pytest.raises(ValueError, match="set embedding_horizon"):
        BGES("MlpPolicy", env, embedding=lambda trajectory: trajectory.rewards, **SMALL).learn(100)


def test_logs_are_what_users_plot(tmp_path):
    model = BGWNES("MlpPolicy", "CartPole-v1", n_basis=1, **SMALL)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(300)
    keys = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    assert {
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
        "rollout/return_std",
        "rollout/parent_return",
        "time/fps",
        "time/total_timesteps",
        "train/grad_norm",
        "train/learning_rate",
        "train/natural_cosine",
        "train/effective_rank",
        "train/wasserstein_distance",
        "train/wasserstein_coef",
        "train/n_updates",
    } <= set(keys)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [ES, WNES])
def test_cartpole_is_learnt(cls):
    env = make_vec_env("CartPole-v1", 11)
    model = cls("MlpPolicy", env, n_delta=16, learning_rate=0.1, seed=0, policy_kwargs={"net_arch": [16]}).learn(60_000)
    assert evaluate_policy(model, model.get_env(), 10, warn=False)[0] > 300


class Blind(gym.Env):
    """Has an observation that is not finite, at the step that is asked for."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)

    def __init__(self, at=0):
        self.at = at

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        return self._observation(), 1.0, self.steps == 4, False, {"is_success": True}

    def _observation(self):
        return np.full(2, np.nan if self.steps == self.at else 0.0, dtype=np.float32)


@pytest.mark.parametrize("at", [0, 2, 4])
def test_observations_that_are_not_finite_end_training_wherever_they_occur(at):
    """Without normalisation, too, and beyond what is embedded."""
    for settings in ({}, {"normalize_observations": True}):
        with pytest.raises(RuntimeError, match=r"observation .*not finite"):
            ES("LinearPolicy", Blind(at), n_delta=2, **settings).learn(100)
    with pytest.raises(RuntimeError, match=r"observation .*not finite"):
        BGES("LinearPolicy", Blind(at), n_delta=2, embedding="final_state", embedding_horizon=1).learn(100)
    outcome = run_episode(ES("LinearPolicy", Blind(at), n_delta=2).policy, Blind(at), 0)
    assert "not finite" in outcome.error


@pytest.mark.parametrize("n_envs", [1, 3])
def test_episodes_from_elsewhere_are_counted_as_the_environments_own(n_envs):
    """Callbacks hear of them as often, with the same infos; failed ones leave no return behind."""
    seen = []

    class Spy(BaseCallback):
        def _on_step(self):
            seen.append((self.num_timesteps, len(self.locals["infos"])))
            return True

    model = ES("LinearPolicy", make_vec_env("CartPole-v1", n_envs), n_delta=2)
    _, callback = model._setup_learn(100, Spy())
    callback.on_training_start({}, {})
    counter = StepCounter(model, callback)
    assert counter.replay(Outcome(5.0, 7, None, {}, is_success=True))
    assert counter.replay(Outcome(float("nan"), 2, None, {}, "OSError"))
    assert model.num_timesteps == 9
    assert [n for n, _ in seen] == ([*range(1, 10)] if n_envs == 1 else [3, 6, 7, 9])
    assert {width for _, width in seen} == {n_envs}
    assert [info["r"] for info in model.ep_info_buffer] == [5.0]
    assert list(model.ep_success_buffer) == [True]
    counter.replay(Outcome(5.0, 1, None, {}, monitored={"r": 10.0, "l": 2, "t": 0.0}))
    assert model.ep_info_buffer[-1]["r"] == 10.0  # a wrapper outside of the Monitor has changed the reward
    assert run_episode(ES("LinearPolicy", Blind(9)).policy, Blind(9), 0).is_success


def test_a_turn_that_comes_to_nothing_leaves_the_policy_and_its_optimiser(chase):
    class Stop(BaseCallback):
        def _on_step(self):
            return self.n_calls < 5

    for seed in range(3):
        model = NSRES("MlpPolicy", "CartPole-v1", n_parents=3, **{**SMALL, "seed": seed}).learn(1000)
        before, states = vector(model), model.policy.optimizer.state_dict()["state"]
        steps = states[0]["step"].item()
        model.learn(1000, Stop(), reset_num_timesteps=False)
        assert torch.equal(vector(model), before)
        assert model.policy.optimizer.state_dict()["state"][0]["step"].item() == steps


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("embedding", [lambda t: t.observations[12], lambda t: float("inf")], ids=["raises", "infinite"])
def test_an_embedding_at_fault_ends_training_whatever_a_failed_episode_is_worth(embedding, n_jobs):
    model = BGES("MlpPolicy", "CartPole-v1", embedding=embedding, env_failure=-1.0, n_jobs=n_jobs, **SMALL)
    with pytest.raises(ValueError, match="embedding"):
        model.learn(500)


class Fragile(BaseFeaturesExtractor):
    """Fails where the pole has left the middle."""

    def __init__(self, space):
        super().__init__(space, features_dim=4)

    def forward(self, x):
        if (x[:, 2].abs() > 0.1).any():
            raise KeyError("no such pole")
        return x


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_policy_at_fault_ends_training_whatever_a_failed_episode_is_worth(n_jobs):
    settings = {**SMALL, "policy_kwargs": {"net_arch": [4], "features_extractor_class": Fragile}}
    model = ES("MlpPolicy", "CartPole-v1", env_failure=-1.0, n_jobs=n_jobs, **settings)
    with pytest.raises((KeyError, ValueError), match="no such pole"):
        model.learn(500)


def test_observations_are_embedded_as_the_environment_gives_them_inside_other_wrappers():
    class Pictures(gym.Env):
        observation_space = spaces.Dict(
            {"v": spaces.Box(-2000, 2000, (1,)), "image": spaces.Box(0, 255, (36, 36, 3), np.uint8)}
        )
        action_space = spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.steps = 0
            return self._observation(), {}

        def step(self, action):
            self.steps += 1
            return self._observation(), 1.0, self.steps == 5, False, {}

        def _observation(self):
            return {"v": np.float32([1000 + self.steps]), "image": np.zeros((36, 36, 3), np.uint8)}

    seen = []

    def last(trajectory):
        seen.append([trajectory.observations[:, -1].max().item(), trajectory.final_observation[-1].item()])
        return seen[-1]

    env = VecNormalize(DummyVecEnv([Pictures]), norm_obs_keys=["v"])
    BGES("MultiInputPolicy", env, embedding=last, n_delta=2, embedding_horizon=5).learn(25)
    np.testing.assert_allclose(seen, [[1004, 1005]] * 5, atol=0.1)


def test_time_limits_are_found_wherever_they_are_kept():
    reward_to_go = make_embedding("reward_to_go")
    assert default_horizon(reward_to_go, make_batched("TwoGoals-v0", 2)) == 20
    assert default_horizon(reward_to_go, DummyVecEnv([lambda: gym.wrappers.TimeLimit(Blind(), 17)])) == 17
    assert default_horizon(reward_to_go, make_vec_env("CartPole-v1")) == 500


class Corridor(gym.Env):
    """Observations are Python's integers, as FrozenLake's and Taxi's."""

    observation_space, action_space = gym.spaces.Discrete(5), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return self.place, {}

    def step(self, action):
        self.place += 1
        return self.place, 1.0, self.place == 4, False, {}


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_observations_may_be_pythons_integers(n_jobs):
    model = ES("MlpPolicy", Corridor(), n_jobs=n_jobs, **SMALL).learn(100)
    assert model.logger.name_to_value.get("rollout/n_failed", 0) == 0


@pytest.mark.parametrize("interrupted", ["_generation", "_update"])
def test_an_interruption_costs_no_parent(interrupted, monkeypatch):
    model = NSRES("MlpPolicy", "CartPole-v1", n_parents=3, **SMALL).learn(800)
    before = copy.deepcopy(model.parents.parameter_vectors)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(model, interrupted, interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.learn(800, reset_num_timesteps=False)
    model.parents.check_out(0, model.policy)  # as the next iteration would: what it finds in the policy is the latest's
    torch.testing.assert_close(model.parents.parameter_vectors, before, rtol=0, atol=0)


def test_arguments_that_only_workers_read_are_warned_of():
    with pytest.warns(UserWarning, match="episode_timeout has no effect with n_jobs=1") as warned:
        ES("MlpPolicy", "CartPole-v1", episode_timeout=3.0)
    assert warned[0].filename == __file__
    with pytest.warns(UserWarning, match="ray_address has no effect"):
        ES("MlpPolicy", "CartPole-v1", n_jobs=2, ray_address="auto")


def test_models_that_exchange_parameters_share_nothing():
    settings = {"n_parents": 2, **SMALL}
    one, other = NSRES("MlpPolicy", "CartPole-v1", **settings).learn(400), NSRES("MlpPolicy", "CartPole-v1", **settings)
    other.set_parameters(one.get_parameters())
    before = copy.deepcopy(one.parents.get_extra_state())
    other.learn(400)
    torch.testing.assert_close(one.parents.get_extra_state(), before, rtol=0, atol=0)


def test_loaded_models_are_where_new_ones_are(tmp_path, monkeypatch):
    ES("MlpPolicy", "CartPole-v1", **SMALL).save(tmp_path / "es")
    asked = []
    monkeypatch.setattr(BaseAlgorithm, "load", classmethod(lambda cls, path, env, device, **_: asked.append(str(device))))
    ES.load(tmp_path / "es")
    ES.load(tmp_path / "es", device="auto")
    assert asked == ["cpu", "auto"]
