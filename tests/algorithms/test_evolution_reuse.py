"""Evolution strategies used a second time, or on what others have made: loaded, warm-started, frozen, other environments."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from stable_baselines3.common import callbacks
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_wng import BGES, ES, NSRES, WNES
from sb3_wng.algorithms import vec_env_evaluator
from sb3_wng.algorithms.episodes import run_episode
from sb3_wng.algorithms.evaluation import Outcome
from sb3_wng.algorithms.meta_population import all_parameters
from sb3_wng.behavior import make_embedding

HYPERPARAMETERS = Path(__file__).parents[2] / "zoo_hyperparams"
SMALL = {"n_delta": 2, "seed": 3}


class Unregistered(gym.Env):
    """Five steps; raises in the episode whose seed is given."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, fails=False):
        self.fails = fails

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action):
        self.t += 1
        if self.fails and self.t == 3:
            raise ArithmeticError("out of order")
        return np.full(3, 0.1, np.float32), float(action), self.t >= 5, False, {}


def vector(model):
    return model.policy.parameters_to_vector().copy()


@pytest.fixture
def saved(tmp_path):
    """``saved(model)`` is the path of its file."""

    def save(model):
        model.save(tmp_path / "model")
        return tmp_path / "model"

    return save


def test_processes_with_an_unregistered_environment_survive_the_question_for_its_time_limit():
    env = SubprocVecEnv([lambda: gym.wrappers.TimeLimit(Unregistered(), 4)] * 2)
    try:
        model = BGES("LinearPolicy", env, **SMALL).learn(1)
        assert model.num_timesteps == 5 * 4  # the wrapper's limit, not the environment's five steps
    finally:
        env.close()


def test_an_environment_that_raises_in_its_only_process_ends_training():
    env = SubprocVecEnv([lambda: Unregistered(fails=True)])
    with pytest.raises(RuntimeError, match="iteration 0"):
        ES("LinearPolicy", env, env_failure=0.0, **SMALL).learn(1)


def test_a_seed_given_to_load_acts(saved):
    path = saved(ES("LinearPolicy", "CartPole-v1", **SMALL))
    one, same, other = (vector(ES.load(path, make_vec_env("CartPole-v1"), seed=seed).learn(1)) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    "settings",
    [{"delta_std": -1.0}, {"weight_decay": -3.0}, {"natural_coef": 2.0}, {"n_delta": 0}, {"common_random_numbers": "bogus"}],
)
def test_settings_given_to_load_are_checked(settings, saved):
    path = saved(WNES("LinearPolicy", "CartPole-v1", n_basis=1, **SMALL))
    with pytest.raises(ValueError, match=next(iter(settings))):
        WNES.load(path, **settings)


@pytest.mark.parametrize(
    ("cls", "settings", "changed"),
    [
        (BGES, {}, {"wasserstein_coef": 0.0}),
        (WNES, {"n_basis": 1}, {"natural_coef": 0.0}),
        (ES, {}, {"wasserstein_coef": 0.5}),
        (ES, {}, {"novelty_weight": 0.5}),
        (NSRES, {"n_parents": 3}, {"n_parents": 1}),
        (NSRES, {"n_parents": 3}, {"n_parents": 5}),
    ],
)
def test_load_names_the_argument_whose_slot_the_file_fills_otherwise(cls, settings, changed, saved):
    path = saved(cls("LinearPolicy", "CartPole-v1", **SMALL, **settings))
    with pytest.raises(ValueError, match=f"^{next(iter(changed))} (is|was)"):
        cls.load(path, **changed)


def test_vec_normalize_is_refused_wherever_it_meets_what_it_would_spoil(saved):
    normalized = VecNormalize(make_vec_env("CartPole-v1"))
    with pytest.raises(ValueError, match="normalize_observations"):
        ES("LinearPolicy", normalized, policy_kwargs={"normalize_observations": True}, **SMALL)
    model = ES("LinearPolicy", "CartPole-v1", normalize_observations=True, **SMALL)
    with pytest.raises(ValueError, match="normalize_observations"):
        ES.load(saved(model), normalized)
    model.set_env(normalized)
    with pytest.raises(ValueError, match="normalize_observations"):
        model.learn(1)
    with pytest.raises(ValueError, match="env_failure"):
        ES("LinearPolicy", normalized, env_failure=0.0, **SMALL)


def test_noise_that_fades_to_nothing_is_refused_when_it_does():
    model = ES("LinearPolicy", "CartPole-v1", delta_std=lambda left: 0.1 * max(left - 0.5, 0.0), **SMALL)
    with pytest.raises(ValueError, match="delta_std must stay > 0"):
        model.learn(1_000)
    assert np.isfinite(vector(model)).all()


def test_several_parents_start_from_what_was_loaded_into_the_policy_and_later_ones_go_on_from_it():
    model = NSRES("LinearPolicy", "CartPole-v1", n_parents=2, learning_rate=0.001, **SMALL)
    model.policy.load_from_vector(np.full(8, 3.0, np.float32))
    model.learn(1)
    assert np.abs(vector(model) - 3).max() < 0.01
    assert all(np.abs(parent.numpy() - 3).max() < 0.01 for parent in model.parents.parameter_vectors)
    model.policy.load_from_vector(np.full(8, 5.0, np.float32))
    model.learn(1, reset_num_timesteps=False)
    means = sorted(parent.mean().item() for parent in model.parents.parameter_vectors)
    assert means == pytest.approx([3, 5], abs=0.01)


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.5}, {"n_jobs": np.int64(2)}], ids=str)
def test_frozen_parameters_are_neither_perturbed_nor_moved(settings):
    model = ES("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": {"pi": [4], "vf": [4]}}, **SMALL, **settings)
    first, last = model.policy.layers
    first.requires_grad_(False)
    before = [first.weight.clone(), last.weight.clone()]
    model.learn(1)
    assert len(vector(model)) == 4 * 2 + 2
    assert torch.equal(first.weight, before[0])
    assert not torch.equal(last.weight, before[1])
    if settings.get("n_jobs"):  # workers have the frozen part, too
        again = ES("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [4]}, **SMALL)
        again.policy.layers[0].requires_grad_(False)
        assert np.array_equal(vector(model), vector(again.learn(1)))


@pytest.mark.parametrize(("alias", "width"), [("final_state", 4), ("state_visitation", 4), ("reward_to_go", 10**6)])
def test_only_embeddings_with_a_number_per_step_are_padded(alias, width, monkeypatch):
    model, lengths = ES("LinearPolicy", "CartPole-v1", **SMALL), []
    embedding = make_embedding(alias)
    call = type(embedding).__call__

    def measured(self, trajectories):
        lengths.append(trajectories.rewards.shape[1])
        return call(self, trajectories)

    monkeypatch.setattr(type(embedding), "__call__", measured)
    outcome = run_episode(model.policy, gym.make("CartPole-v1"), 0, embedding, 10**6)
    assert outcome.embedding.shape == (width,)
    assert lengths == [10**6 if alias == "reward_to_go" else outcome.length]


@pytest.mark.parametrize("name", ["es", "wnes", "bges", "bgwnes", "nsres"])
def test_atari_candidates_play_whole_games(name):
    settings = yaml.safe_load((HYPERPARAMETERS / f"{name}.yml").read_text())["atari"]
    (wrapper,) = settings["env_wrapper"]
    assert wrapper == {"stable_baselines3.common.atari_wrappers.AtariWrapper": {"terminal_on_life_loss": False}}


def test_episodes_of_unregistered_environments_train_in_this_process():
    env = DummyVecEnv([Unregistered])
    assert BGES("LinearPolicy", env, embedding_horizon=5, **SMALL).learn(1).num_timesteps == 25


# --- What an iteration makes of its outcomes ---


def quiet(cls, **settings):
    """A strategy that can log, as in ``learn``."""
    model = cls("LinearPolicy", "CartPole-v1", **{"n_delta": 2, **settings})
    model.set_logger(configure(None, []))
    return model


def test_episodes_of_a_candidate_are_averaged():
    model = quiet(ES, n_episodes=2, fitness_shaping="none")
    outcomes = [Outcome(float(value), 1, None, {}) for value in range(9)]  # the parent's last
    assert model._returns(outcomes).tolist() == [0.5, 2.5, 4.5, 6.5]
    assert model._shaped_bonus(torch.arange(8.0)).tolist() == [0.5, 2.5, 4.5, 6.5]


@pytest.mark.parametrize("cls", [NSRES, BGES])
def test_behaviour_far_from_what_is_remembered_is_fit(cls):
    model = quiet(cls)
    embeddings = torch.tensor([[1.0], [2.0], [3.0], [9.0], [0.0]])  # the parent's last
    model._fitness(torch.zeros(4), embeddings)
    fitness = model._fitness(torch.zeros(4), embeddings)
    assert fitness.argmax() == 3
    assert fitness.argmin() == 0
    memory = model.novelty_bonus if cls is NSRES else model.wasserstein_bonus
    assert memory.embeddings.tolist() == [[0.0], [0.0]]


def test_novelty_is_the_mean_distance_to_as_many_neighbours_as_asked_for():
    model = quiet(NSRES, n_neighbors=2)
    for parent in (0.0, 1.0, 50.0):
        model.novelty_bonus.update(torch.tensor([[parent]]))
    assert model.novelty_bonus(torch.tensor([[2.0]])).item() == pytest.approx(1.5)


def test_the_novel_parents_have_their_turns():
    model = quiet(NSRES, n_parents=3)
    model.parents.embeddings = [torch.tensor([[value]]) for value in (0.0, 5.0, 0.0)]
    model.novelty_bonus.update(torch.tensor([[0.0]]))
    random = np.random.default_rng(0)
    assert {model.parents.choose(model.novelty_bonus, random) for _ in range(20)} == {1}


def test_weight_decay_shrinks_by_the_rate():
    model = quiet(ES, learning_rate=0.1, weight_decay=0.5)
    model.policy.load_from_vector(np.ones(8, np.float32))
    model._apply(torch.zeros(8))
    np.testing.assert_allclose(vector(model), 1 - 0.1 * 0.5, rtol=1e-6)


class Disturbed(gym.Env):
    """Pays the product of action and a disturbance that is drawn after it: on average nothing, whatever the policy does."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), float(action[0] * self.np_random.standard_normal()), True, False, {}


@pytest.mark.parametrize("noise", [{"action_noise_std": 0.5}, {"noise_dim": 1}], ids=str)
@pytest.mark.parametrize("is_plain", [False, True])
def test_a_policys_noise_knows_nothing_of_the_environments(noise, is_plain):
    kwargs = {"net_arch": [], "output_bias": False, **noise}
    model = ES("MlpPolicy", DummyVecEnv([Disturbed] * 4), n_delta=100, delta_std=1e-3, policy_kwargs=kwargs, seed=0)
    model.policy.load_from_vector(np.full_like(vector(model), 0.5))
    if is_plain:
        returns = [run_episode(model.policy, Disturbed(), seed).episode_return for seed in range(200)]
    else:
        returns = [info["r"] for info in model.learn(1).ep_info_buffer]
    assert abs(np.mean(returns)) < 4 * np.std(returns) / np.sqrt(len(returns))


@pytest.mark.parametrize("point", ["_on_rollout_start", "_on_rollout_end"])
def test_a_model_saved_during_an_iteration_has_every_parent(point, saved):
    model = NSRES("MlpPolicy", "Pendulum-v1", n_parents=3, policy_kwargs={"net_arch": [4]}, **SMALL)
    model.learn(1)

    class Save(BaseCallback):
        def _on_step(self):
            return True

    def save(callback):
        callback.parents = [vector.clone() for vector in model.parents.parameter_vectors]
        callback.path = saved(model)

    setattr(Save, point, save)
    for _ in range(4):
        callback = Save()
        model.learn(1, callback=callback, reset_num_timesteps=False)
        loaded = NSRES.load(callback.path, env=model.env)
        loaded.learn(1, reset_num_timesteps=False)
        changed = [not torch.equal(a, b) for a, b in zip(callback.parents, loaded.parents.parameter_vectors, strict=True)]
        assert sum(changed) == 1


def test_parents_keep_their_layers_when_one_is_frozen(saved):
    model = NSRES("MlpPolicy", "Pendulum-v1", n_parents=2, policy_kwargs={"net_arch": [4]}, **SMALL)
    model.learn(1)
    model.learn(1, reset_num_timesteps=False)
    starts = [vector.clone() for vector in model.parents.parameter_vectors]
    n_first = model.policy.layers[0].weight.numel()
    model.policy.layers[0].weight.requires_grad_(False)
    for _ in range(4):
        model.learn(1, reset_num_timesteps=False)
    for before, after in zip(starts, model.parents.parameter_vectors, strict=True):
        assert torch.equal(before[:n_first], after[:n_first])
        torch.testing.assert_close(before, after, atol=0.5, rtol=0)  # steps of Adam's rate, nothing swapped
    assert any(not torch.equal(a, b) for a, b in zip(starts, model.parents.parameter_vectors, strict=True))
    NSRES.load(saved(model), env=model.env).learn(1, reset_num_timesteps=False)


def test_vectors_of_another_length_and_policies_without_trained_parameters_are_refused():
    model = ES("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [4]}, **SMALL)
    given = vector(model)
    model.policy.layers[0].requires_grad_(False)
    with pytest.raises(ValueError, match="must have the 5 trained parameters"):
        model.policy.load_from_vector(given)
    model.policy.layers[1].requires_grad_(False)
    with pytest.raises(ValueError, match="all parameters are frozen"):
        model.learn(1)


class Freeze(BaseCallback):
    """Freezes a layer at the start of an iteration, and changes what is frozen."""

    def _on_rollout_start(self):
        layer = self.model.policy.layers[0].requires_grad_(False)
        layer.weight.data.mul_(2)

    def _on_step(self):
        return True


def test_layers_frozen_at_the_start_of_an_iteration_are_not_perturbed():
    model = ES("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [4]}, **SMALL)
    before = model.policy.layers[0].weight.clone()
    model.learn(1, callback=Freeze())
    assert torch.equal(model.policy.layers[0].weight, 2 * before)


@pytest.mark.parametrize(("algorithm", "settings"), [(ES, {}), (NSRES, {"n_parents": 2})], ids=["ES", "NSRES"])
def test_workers_have_the_frozen_parameters_of_each_iteration(algorithm, settings):
    learnt = []
    for n_jobs in (1, 2):
        model = algorithm("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [4]}, n_jobs=n_jobs, **SMALL, **settings)
        if algorithm is NSRES:  # parents have frozen layers of their own
            model.policy.layers[0].requires_grad_(False)
        model.learn(2_500, callback=Freeze() if algorithm is ES else None)
        learnt.append(all_parameters(model.policy))
    assert model._n_updates > 1
    assert torch.equal(*learnt)


def test_a_replaced_layer_is_trained():
    model = ES("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [4]}, **SMALL).learn(1)
    model.policy.layers[1] = torch.nn.Linear(4, 1)
    before = model.policy.layers[1].weight.clone()
    model.learn(1, reset_num_timesteps=False)
    assert not torch.equal(model.policy.layers[1].weight, before)


def test_columns_in_processes_give_the_same_parameters():
    settings = {"policy_kwargs": {"net_arch": [4]}, **SMALL}
    models = [
        ES("MlpPolicy", make_vec_env("Pendulum-v1", 2, vec_env_cls=cls), **settings).learn(3_000)
        for cls in (DummyVecEnv, SubprocVecEnv)
    ]
    np.testing.assert_array_equal(vector(models[0]), vector(models[1]))
    models[1].env.close()


def test_a_seed_that_is_set_decides_training():
    learnt = []
    for seeds in ((5, 7), (3, 7), (3, None)):
        model = ES("MlpPolicy", "Pendulum-v1", n_delta=2, seed=seeds[0], policy_kwargs={"net_arch": []})
        model.policy.load_from_vector(np.zeros_like(vector(model)))
        model.set_random_seed(seeds[1])
        learnt.append(vector(model.learn(1)))
    np.testing.assert_array_equal(learnt[0], learnt[1])
    assert not np.array_equal(learnt[1], learnt[2])


def test_normalisation_cannot_be_switched_by_load(saved):
    path = saved(ES("MlpPolicy", "Pendulum-v1", **SMALL))
    with pytest.raises(ValueError, match="normalize_observations must be what it was"):
        ES.load(path, normalize_observations=True)


class Endless(Unregistered):
    """Ends, late."""

    def step(self, action):
        self.t += 1
        return np.zeros(3, np.float32), 0.0, self.t >= 40, False, {}


def test_an_episode_that_does_not_end_is_warned_of(monkeypatch):
    monkeypatch.setattr(vec_env_evaluator, "VERY_LONG", 30)
    model = ES("MlpPolicy", DummyVecEnv([Endless]), policy_kwargs={"net_arch": []}, **SMALL)
    with pytest.warns(UserWarning, match="gone on for 30 steps"):
        model.learn(1)


def test_policy_kwargs_that_the_policy_does_not_have_are_named():
    with pytest.raises(ValueError, match=r"EvolutionPolicy has no ortho_init; it has net_arch, .*toeplitz"):
        ES("MlpPolicy", "Pendulum-v1", policy_kwargs={"ortho_init": False})


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_the_progress_bar_counts_the_steps_that_count(n_jobs, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total):
            self.total, self.n = total, 0
            bars.append(self)

        def update(self, n):
            self.n += n

        def refresh(self):
            pass

        close = refresh

    monkeypatch.setattr(callbacks, "tqdm", Bar)
    calls = []
    model = ES("MlpPolicy", make_vec_env("CartPole-v1", 4), n_jobs=n_jobs, policy_kwargs={"net_arch": []}, **SMALL)
    model.learn(100, callback=lambda *_: calls.append(1) or True, progress_bar=True)
    model.learn(100, progress_bar=True, reset_num_timesteps=False)
    assert sum(bar.n for bar in bars) == model.num_timesteps
    assert len(calls) > 0
