import importlib.resources

import pytest
import yaml

pytest.importorskip("sb3_contrib")
pytest.importorskip("rl_zoo3")
pytest.importorskip("pybullet_envs_gymnasium")

from sb3_wng.benchmarks import conditioning, experiments, models
from sb3_wng.benchmarks.experiments import EXPERIMENTS
from sb3_wng.benchmarks.models import OURS, Experiment, Method

CELLS = [
    pytest.param(experiment, method, environment, id=f"{name}-{method}-{environment}")
    for name, experiment in EXPERIMENTS.items()
    for method in experiment.methods
    for environment in experiment.environments
]


def needed_entries() -> set[tuple[str, str]]:
    """Files of hyperparameters and the tasks that they must have: the algorithm's own, and the one a method asks for."""
    needed = set()
    for experiment in EXPERIMENTS.values():
        for method in experiment.methods.values():
            own = method.algorithm.lower() if method.algorithm in OURS else f"rl_zoo3/{method.algorithm.lower()}"
            for environment in experiment.environments:
                needed |= {(name, environment) for name in {own, method.hyperparameters or own}}
    ours = (experiments.REGULATOR, experiments.UPRIGHT)  # which RL-Zoo does not know
    return {entry for entry in needed if not (entry[0].startswith("rl_zoo3/") and entry[1] in ours)}


@pytest.mark.parametrize(("name", "environment"), sorted(needed_entries()))
def test_every_algorithm_and_task_has_its_rl_zoo_entry(name, environment):
    assert environment in models.hyperparameter_file(name), f"{name}.yml lacks {environment}"


@pytest.mark.parametrize(("experiment", "method", "environment"), CELLS)
def test_every_setting_is_an_argument_of_its_algorithm(experiment, method, environment):
    settings = models.settings(experiment, method, environment)
    settings.pop("n_envs", None)
    settings.pop("normalize", None)
    policy = settings.pop("policy", "MlpPolicy")
    algorithm = models.algorithm_class(experiment.methods[method].algorithm)
    algorithm(policy, None, _init_setup_model=False, **settings)


def test_the_best_known_settings_of_the_baselines_are_those_of_rl_zoo():
    text = importlib.resources.files("rl_zoo3").joinpath("hyperparams/trpo.yml").read_text()
    entry = yaml.safe_load(text)[experiments.HOPPER]
    settings = models.settings(experiments.POLICY_GRADIENTS, "TRPO", experiments.HOPPER)
    assert settings == {key: value for key, value in entry.items() if key not in ("n_timesteps", "policy")}
    half = models.settings(experiments.POLICY_GRADIENTS, "TRPO 2 x 512", experiments.HOPPER)
    defaults = {"gamma": 0.99, "gae_lambda": 0.95, "cg_damping": 0.1, "sub_sampling_factor": 1}
    assert {**defaults, **half} == {**settings, "n_steps": 512}


def test_schedules_and_dictionaries_of_rl_zoo_are_understood():
    settings = models.settings(experiments.POLICY_GRADIENTS, "PPO, RL-Zoo", experiments.HOPPER)
    assert settings["clip_range"](0.5) == pytest.approx(0.2)
    assert settings["policy_kwargs"]["net_arch"] == {"pi": [256, 256], "vf": [256, 256]}


def test_half_of_trpos_rollout_is_all_that_differs_from_rl_zoos_settings():
    for environment in (*experiments.MILLION.environments,):
        if environment != experiments.PENDULUM:  # where RL-Zoo has other settings than for the robots
            zoos = models.settings(experiments.MILLION, "TRPO", environment)
            half = models.settings(experiments.MILLION, "TRPO 2 x 512", environment)
            assert {key: zoos[key] for key in half} == {**half, "n_steps": zoos["n_steps"]}, environment


@pytest.mark.parametrize(
    "study",
    [
        (experiments.PRECISE_REACHING, experiments.REACHER, ()),
        (experiments.HOLDING_STILL, experiments.UPRIGHT, ("gamma", "gae_lambda")),
    ],
    ids=["reaching", "holding"],
)
def test_methods_that_are_to_be_precise_have_the_same_rollouts_and_networks(study):
    experiment, environment, names = study
    shared = [models.settings(experiment, method, environment) for method in experiment.methods]
    for name in ("n_envs", "n_steps", "normalize", "policy_kwargs", *names):
        assert all(settings[name] == shared[0][name] for settings in shared), name


@pytest.mark.parametrize(
    ("experiment", "n_actions"),
    [(experiments.DETERMINISTIC_OPTIMUM, 2), (experiments.HOLDING_STILL, 1)],
    ids=lambda e: str(e)[:5],
)
def test_radii_mean_the_same_kl_divergence_for_every_method(experiment, n_actions):
    (environment,) = experiment.environments
    for radius in (0.02, 0.1, 0.5):
        wnpg, npg, trpo = (
            models.settings(experiment, f"{name} radius {radius}", environment) for name in ("WNPG", "NPG", "TRPO")
        )
        assert wnpg["target_kl"] == npg["target_kl"] == pytest.approx(n_actions * trpo["target_kl"]) == radius
        # as far as means move by it, with all spreads 1: the squared distance, of which the KL divergence is half
        assert wnpg["target_distance"] * n_actions / 2 == pytest.approx(radius)


def test_published_numbers_are_there_for_every_task_of_table_1():
    for published in experiments.MILLION.published:
        missing = {experiments.PENDULUM} if "RL-Zoo" in published.source else set()
        for returns in published.returns.values():
            assert set(returns) == set(experiments.MILLION.environments) - missing


def test_the_experiments_arguments_have_the_last_word():
    experiment = Experiment("e", "", {"m": Method("WNPG", "wnpg", {"n_steps": 7})}, {experiments.HOPPER: 100}, (0,))
    settings = models.settings(experiment, "m", experiments.HOPPER)
    assert settings["n_steps"] == 7
    assert settings["target_kl"] == pytest.approx(0.03)
    shared = Experiment(
        "e",
        "",
        experiment.methods,
        experiment.environments,
        (0,),
        environment_arguments={experiments.HOPPER: {"n_steps": 8, "target_kl": 0.5}},
    )
    settings = models.settings(shared, "m", experiments.HOPPER)
    assert (settings["n_steps"], settings["target_kl"]) == (7, 0.5)


def test_settings_of_one_environment_override_those_of_all():
    method = Method("WNPG", "wnpg", {"target_kl": 0.3}, {experiments.HOPPER: {"target_kl": 0.5}})
    experiment = Experiment("e", "", {"m": method}, dict.fromkeys((experiments.HOPPER, experiments.CHEETAH), 100), (0,))
    radii = [models.settings(experiment, "m", environment)["target_kl"] for environment in experiment.environments]
    assert radii == [0.5, 0.3]


def test_finished_studies_keep_the_constant_radius_that_the_pendulums_had():
    settings = models.settings(conditioning.EXPERIMENT, "WNPG", experiments.PENDULUM)
    assert {name: settings[name] for name in experiments.CONSTANT_RADIUS} == experiments.CONSTANT_RADIUS


def test_a_task_without_settings_is_refused_with_the_way_out():
    experiment = Experiment("e", "", {"m": Method("WNPG", "published/wnpg")}, {"CartPole-v1": 100}, (0,))
    with pytest.raises(ValueError, match=r"published/wnpg.yml has no entry for CartPole-v1; add one"):
        models.settings(experiment, "m", "CartPole-v1")


def test_seeds_of_experiments_that_choose_and_that_report_do_not_meet():
    groups = [set(EXPERIMENTS[name].seeds) for name in ("kernel_variants", "policy_gradients", "deterministic_optimum")]
    assert len(set.union(*groups)) == sum(map(len, groups))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_consistent(name):
    experiment = EXPERIMENTS[name]
    assert experiment.name == name
    assert set(experiment.baselines) <= set(experiment.methods)
    assert {*experiment.saturating, *experiment.optimum, *experiment.environment_arguments} <= set(experiment.environments)
    off_policy = {"SAC", "TQC"}  # for comparison, never run here
    assert all(set(published.returns) <= set(experiment.methods) | off_policy for published in experiment.published)
    assert all(timesteps % experiment.n_bins == 0 for timesteps in experiment.environments.values())
