"""RL-Zoo runs our algorithms with our hyperparameters, and its mistakes come back as one line."""

import importlib.resources
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rl_zoo3")

import gymnasium
import optuna
import rl_zoo3
import rl_zoo3.hyperparams_opt
import yaml

from sb3_wng import zoo

ZOO_KEYS = {
    "callback",
    "env_kwargs",
    "env_wrapper",
    "frame_stack",
    "monitor_kwargs",
    "n_envs",
    "n_timesteps",
    "normalize",
    "vec_env_wrapper",
}
TASKS = """
    Walker2DBulletEnv-v0 HalfCheetahBulletEnv-v0 AntBulletEnv-v0 ReacherBulletEnv-v0 HopperBulletEnv-v0
    InvertedPendulumBulletEnv-v0 InvertedDoublePendulumBulletEnv-v0 InvertedPendulumSwingupBulletEnv-v0
    Hopper-v5 HalfCheetah-v5 Walker2d-v5 Ant-v5 Reacher-v5 InvertedPendulum-v5 InvertedDoublePendulum-v5
    Swimmer-v5 Humanoid-v5
    CartPole-v1 Pendulum-v1 Acrobot-v1 MountainCar-v0 MountainCarContinuous-v0
    default atari
""".split()
WALLS = {"PointWall-v0", "AntWall-v0"}
RLLAB = {f"Rllab{task}-v0" for task in ("CartPoleSwingUp", "DoublePendulum", "CartPole", "MountainCar")}
SMALL = ("n_envs:1", "n_steps:64", "batch_size:32", "n_critic_updates:2")
CLASSES = {**zoo.ALGORITHMS, **zoo.STRATEGIES}
ALGORITHMS = pytest.mark.parametrize("algo", sorted(CLASSES))


def read_hyperparams(algo):
    return yaml.safe_load(zoo.hyperparams_file(algo).read_text())


def launch(*arguments, cwd):
    """Run the launcher as a user would, in a process of its own, and return what it printed."""
    paths = [str(Path(zoo.__file__).parents[1]), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "sb3_wng.zoo", *arguments]
    process = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    """An otherwise empty folder in which each of the trained WNPG's files lies where RL-Zoo puts it."""
    folder = tmp_path_factory.mktemp("cartpole")
    arguments = "train --algo wnpg --env CartPole-v1 -n 256 --eval-freq 128 --save-freq 128 --eval-episodes 1 --seed 1"
    output = launch(*arguments.split(), "-params", *SMALL, cwd=folder)
    assert str(zoo.hyperparams_file("wnpg")) in output
    return folder


# --- Hyperparameter files ---


@ALGORITHMS
def test_every_hyperparameter_is_known_to_the_zoo_or_to_the_constructor(algo):
    known = ZOO_KEYS | set(inspect.signature(CLASSES[algo]).parameters)
    for env_id, hyperparams in read_hyperparams(algo).items():
        assert set(hyperparams) <= known, f"{algo}, {env_id}: {set(hyperparams) - known}"
        assert {"policy", "n_timesteps"} <= set(hyperparams), env_id


PUBLISHED = sorted(path.stem for path in (zoo.hyperparams_file("wnpg").parent / "published").glob("*.yml"))


@pytest.mark.parametrize("algo", PUBLISHED)
def test_published_settings_cover_the_papers_tasks_and_are_known_to_the_constructor(algo):
    known = ZOO_KEYS | set(inspect.signature(zoo.OURS[algo]).parameters)
    settings = yaml.safe_load(zoo.hyperparams_file(algo, is_published=True).read_text())
    robots = {task for task in TASKS if "Bullet" in task and "InvertedPendulum" not in task}
    assert set(settings) == (WALLS if algo in zoo.STRATEGIES else RLLAB if algo == "svpg" else robots)
    for env_id, hyperparams in settings.items():
        assert set(hyperparams) <= known, env_id


def test_published_settings_train_by_their_name(tmp_path):
    arguments = "train --algo wnpg --env HopperBulletEnv-v0 -n 128 --eval-freq -1 --conf-file published"
    output = launch(*arguments.split(), "-params", "n_steps:128", "n_policy_updates:1", cwd=tmp_path)
    assert "published/wnpg.yml" in output


@ALGORITHMS
def test_every_task_has_an_entry_and_every_entry_is_a_task(algo):
    zoo.register()
    tasks = set(read_hyperparams(algo))
    assert set(TASKS) <= tasks
    assert tasks - {"default", "atari"} <= set(gymnasium.registry)


@pytest.mark.parametrize(
    ("algo", "tasks"),
    [
        *((algo, WALLS) for algo in zoo.STRATEGIES),
        ("svpg", RLLAB),
        ("wassersteinpopulation", {"TwoGoals-v0", "HalfCheetahBulletEnv-v0"}),
    ],
)
def test_tasks_of_the_studies_have_entries(algo, tasks):
    assert tasks <= set(read_hyperparams(algo))


@ALGORITHMS
def test_numbers_in_the_files_are_numbers(algo):
    # YAML reads 1e-3 as a string unless it is marked as a float.
    for env_id, hyperparams in read_hyperparams(algo).items():
        strings = {key for key, value in hyperparams.items() if isinstance(value, str)}
        strings -= {"policy", "policy_kwargs", "metric", "step_rule", "embedding", "fitness_shaping"}
        assert strings <= {"learning_rate", "actor_learning_rate", "target_distance", "target_kl"}, env_id
        assert all(str(hyperparams[key]).startswith("lin_") for key in strings), env_id


def test_npg_radius_grows_with_the_number_of_actions():
    zoo.register()
    for env_id, hyperparams in read_hyperparams("npg").items():
        if env_id not in ("default", "atari"):
            actions = sum(gymnasium.make(env_id).action_space.shape) or 1
            others = {"HalfCheetah-v5": 0.04, "LinearQuadratic-v0": 0.05, "UprightPendulum-v0": 0.1}
            per_action = others.get(env_id, 0.01)
            radius = str(hyperparams["target_kl"])
            initial = float(radius.removeprefix("lin_"))
            assert initial == pytest.approx(per_action * actions * (2 if "lin_" in radius else 1)), env_id


# --- Registration ---


def test_radii_may_fall_linearly(tmp_path):
    """What the shipped files say of robots reaches the algorithm, beside RL-Zoo's own schedules."""
    zoo.register()
    from rl_zoo3.exp_manager import ExperimentManager

    given = {"target_distance": "lin_0.04", "target_kl": "lin_1e-2", "step_size": "lin_0.4", "learning_rate": "lin_1e-3"}
    schedules = ExperimentManager._preprocess_schedules(dict(given))
    assert [schedules[name](0.25) for name in given] == pytest.approx([0.01, 2.5e-3, 0.1, 2.5e-4])
    assert ExperimentManager._preprocess_schedules({"target_kl": 0.1}) == {"target_kl": 0.1}
    particles = {"target_kl": "lin_0.02", "learning_rate": "lin_1e-3", "n_critic_updates": 5}
    read = ExperimentManager._preprocess_schedules({"algorithm_kwargs": particles})["algorithm_kwargs"]
    assert [read["target_kl"](0.25), read["learning_rate"](0.5), read["n_critic_updates"]] == [0.005, 0.0005, 5]
    assert particles["target_kl"] == "lin_0.02"  # what RL-Zoo writes to the run's folder
    arguments = "train --algo wnpg --env Pendulum-v1 -n 128 --eval-freq -1 --log-interval 1"
    output = launch(*arguments.split(), "-params", *SMALL, "target_kl:'lin_0.02'", "target_distance:'lin_0.04'", cwd=tmp_path)
    assert "wasserstein_distance" in output


def test_schedules_of_temperature_and_coefficient_are_read_by_name(capsys):
    zoo.register()
    from rl_zoo3.exp_manager import ExperimentManager

    given = {"temperature": "AnnealedTemperature(100, final=1)", "wasserstein_coef": "AnnealedCoefficient(-1.0, -0.1, 0.5)"}
    read = ExperimentManager._preprocess_schedules(dict(given))
    assert read["temperature"](0.5) == pytest.approx(10)
    assert read["wasserstein_coef"](0.5) == pytest.approx(-0.1)
    assert ExperimentManager._preprocess_schedules({"temperature": 3.0}) == {"temperature": 3.0}
    assert ExperimentManager._preprocess_schedules({"wasserstein_coef": "lin_-0.5"})["wasserstein_coef"](0.5) == -0.25
    for text in (
        "lin_100",
        "AnnealedTemperature(1 / 0, 1)",
        "AnnealedTemperature(0, 1)",
        "AnnealedTemperature(",
        "AnnealedCoefficient(1, 2)",
    ):
        with pytest.raises(SystemExit):
            ExperimentManager._preprocess_schedules({"temperature": text})
        assert "temperature must be a number, or AnnealedTemperature or Cyclical" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        ExperimentManager._preprocess_schedules({"wasserstein_coef": "AnnealedTemperature(100, 1)"})
    assert "wasserstein_coef must be a number, lin_x, or AnnealedCoefficient" in capsys.readouterr().err


def test_arguments_of_particles_may_be_written_as_those_of_policies():
    zoo.register()
    from rl_zoo3.exp_manager import ExperimentManager

    read = ExperimentManager._preprocess_schedules({"algorithm_kwargs": "dict(target_kl='lin_0.02', batch_size=32)"})
    assert read["algorithm_kwargs"]["batch_size"] == 32
    assert read["algorithm_kwargs"]["target_kl"](0.5) == 0.01


def test_version_5_of_a_mujoco_task_gets_rl_zoos_settings_for_version_4(monkeypatch, capsys):
    started = []
    monkeypatch.setattr(zoo, "_run", lambda script, arguments: started.append(arguments))
    zoo.main(["train", "--algo", "trpo", "--env", "Hopper-v5"])
    path = Path(started[0][started[0].index("--conf-file") + 1])
    entry = yaml.safe_load(importlib.resources.files("rl_zoo3").joinpath("hyperparams/trpo.yml").read_text())["Hopper-v4"]
    assert yaml.safe_load(path.read_text()) == {"Hopper-v5": entry}
    assert "Hopper-v4" in capsys.readouterr().out
    for arguments in (["--env", "Reacher-v5"], ["--env", "CartPole-v1"], ["--env", "Hopper-v5", "--conf-file", "mine.yml"]):
        zoo.main(["train", "--algo", "trpo", *arguments])
        assert started[-1] == ["--algo", "trpo", *arguments]  # no settings for either, none needed, or the user's own


def test_a_missing_simulator_and_a_missing_package_of_tasks_are_named_in_one_line(monkeypatch, capsys):
    def without_mujoco(script, arguments):
        raise gymnasium.error.DependencyNotInstalled("MuJoCo is not installed")

    monkeypatch.setattr(zoo, "_run", without_mujoco)
    for arguments, message in (
        (["--env", "Hopper-v5"], "sb3_wng.zoo: MuJoCo is not installed. It comes with: pip install 'sb3-wng[envs]'\n"),
        (["--gym-packages", "nowhere.envs"], "sb3_wng.zoo: --gym-packages nowhere.envs is not installed\n"),
    ):
        with pytest.raises(SystemExit):
            zoo.main(["train", "--algo", "wnpg", *arguments])
        assert capsys.readouterr().err == message


def test_registering_twice_changes_nothing():
    zoo.register()
    names = list(rl_zoo3.ALGOS)
    zoo.register()
    assert list(rl_zoo3.ALGOS) == names
    for algo, algorithm in zoo.OURS.items():
        assert rl_zoo3.ALGOS[algo] is algorithm


@ALGORITHMS
def test_sampled_hyperparameters_are_constructor_arguments_and_come_back_from_a_finished_trial(algo):
    zoo.register()
    trial = optuna.create_study().ask()
    sampled = rl_zoo3.hyperparams_opt.HYPERPARAMS_SAMPLER[algo](trial, 3, 1, {})
    assert set(sampled) <= set(inspect.signature(CLASSES[algo]).parameters)
    assert rl_zoo3.hyperparams_opt.HYPERPARAMS_CONVERTER[algo](trial.params) == sampled


# --- Scripts ---


def test_training_leaves_a_model_checkpoints_and_a_reproducible_command(cartpole):
    run = cartpole / "logs" / "wnpg" / "CartPole-v1_1"
    assert {"CartPole-v1.zip", "best_model.zip", "rl_model_256_steps.zip"} <= {path.name for path in run.iterdir()}
    assert "-m sb3_wng.zoo train" in (run / "CartPole-v1" / "command.txt").read_text()


@pytest.mark.parametrize("choice", [[], ["--load-best"], ["--load-last-checkpoint"], ["--load-checkpoint", "128"]])
def test_enjoy_loads_what_training_saved(cartpole, choice, monkeypatch, capsys):
    monkeypatch.chdir(cartpole)
    zoo.main(["enjoy", "--algo", "wnpg", "-f", "logs", "-n", "500", "--exp-id", "1", "--no-render", *choice])
    assert "Mean reward" in capsys.readouterr().out


def test_training_continues_from_a_saved_model(cartpole, monkeypatch, capsys):
    monkeypatch.chdir(cartpole)
    model = "logs/wnpg/CartPole-v1_1/CartPole-v1.zip"
    arguments = ["train", "--algo", "wnpg", "-i", model, "-f", "continued", "-n", "64", "--eval-freq", "-1"]
    zoo.main([*arguments, "-params", *SMALL])
    assert "Loading pretrained agent" in capsys.readouterr().out
    assert Path("continued/wnpg/CartPole-v1_1/CartPole-v1.zip").is_file()


@pytest.mark.parametrize("algo", ["npg", "pg", "bgwnes"])
def test_the_other_algorithms_train_on_continuous_actions(algo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "--algo", algo, "--env", "Pendulum-v1", "-n", "128", "--eval-freq", "-1"]
    zoo.main([*arguments, "-params", *(SMALL if algo in zoo.ALGORITHMS else ("n_delta:2", "n_basis:1"))])
    assert Path(f"logs/{algo}/Pendulum-v1_1/Pendulum-v1.zip").is_file()


def test_worker_processes_simulate_a_bullet_robot_and_its_normalisation_is_saved(tmp_path):
    arguments = "train --algo wnpg --env HopperBulletEnv-v0 -n 200 --eval-freq -1 --vec-env subproc"
    launch(*arguments.split(), "-params", "n_steps:50", "n_critic_updates:2", cwd=tmp_path)
    run = tmp_path / "logs" / "wnpg" / "HopperBulletEnv-v0_1"
    assert (run / "HopperBulletEnv-v0.zip").is_file()
    assert (run / "HopperBulletEnv-v0" / "vecnormalize.pkl").is_file()


@ALGORITHMS
def test_a_trial_of_a_hyperparameter_search_can_be_trained(algo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # The seed decides the trials: these ones have short rollouts.
    study = ["--algo", algo, "-n", "64", "--seed", "3", "--storage", "study.log", "--study-name", "study"]
    search = ["-optimize", "--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots"]
    zoo.main(["train", *study, *search, "-params", "n_envs:1"])
    assert "Number of finished trials:  2" in capsys.readouterr().out
    zoo.main(["train", *study, "--trial-id", "1", "--eval-freq", "-1"])
    assert "Loading from Optuna study" in capsys.readouterr().out


def test_the_users_own_configuration_file_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "_run", lambda script, arguments: commands.append(arguments))
    commands = []
    zoo.main(["train", "--algo", "wnpg", "--conf-file", "mine.yml"])
    zoo.main(["train", "--algo", "wnpg", "-conf", "mine.yml"])
    zoo.main(["train", "--algo=ppo"])
    zoo.main(["train", "--algo=pg"])
    assert ["--conf-file" in command for command in commands] == [True, False, False, True]
    assert commands[-1][-1].endswith("pg.yml")


@pytest.mark.parametrize(
    ("command", "script"),
    [(["python", "enjoy.py"], "enjoy"), (["python", "-m", "rl_zoo3.record_video"], "record_video")],
)
def test_processes_started_by_the_zoo_know_our_algorithms(command, script, monkeypatch):
    commands = []
    monkeypatch.setattr(subprocess, "call", lambda command: commands.append(command) or 0)
    original = subprocess.call
    with zoo._our_children():
        assert subprocess.call([*command, "--algo", "wnpg"]) == 0
        assert subprocess.call(["ls"]) == 0
    assert commands == [[sys.executable, "-m", "sb3_wng.zoo", script, "--algo", "wnpg"], ["ls"]]
    assert subprocess.call is original


# --- Mistakes ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["usage: python -m sb3_wng.zoo", "train", "record_training"]),
        (["trian"], ["unknown script 'trian'", "train", "plots.plot_train"]),
        (["train", "--algo", "wnpgg"], ["unknown --algo 'wnpgg'", "wnpg", "trpo"]),
        (["enjoy", "--env", "HoperBulletEnv-v0"], ["unknown --env 'HoperBulletEnv-v0'", "HopperBulletEnv-v0"]),
        (["train", "--env", "???"], ["unknown --env '???'"]),
        (["train", "--algo", "ppo", "--env", "CartPole-v1", "--conf-file", "published"], ["there is no published/ppo.yml"]),
    ],
)
def test_a_mistake_is_answered_in_one_line(arguments, words, capsys):
    check_one_line_error(arguments, words, capsys)


def test_a_missing_zoo_is_named_with_its_remedy(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rl_zoo3", None)
    monkeypatch.setitem(sys.modules, "rl_zoo3.import_envs", None)
    check_one_line_error(["train"], ["rl_zoo3", "pip install 'sb3-wng[zoo]'"], capsys)


def test_missing_bullet_environments_are_named_with_their_remedy(monkeypatch, capsys):
    others = {env_id: spec for env_id, spec in gymnasium.registry.items() if "Bullet" not in env_id}
    monkeypatch.setattr(gymnasium, "registry", others)
    words = ["AntBulletEnv-v0", "pip install 'sb3-wng[envs]'"]
    check_one_line_error(["train", "--env", "AntBulletEnv-v0"], words, capsys)


def test_a_run_without_a_model_is_told_from_the_one_that_was_meant(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs" / "es" / "CartPole-v1_1").mkdir(parents=True)  # as a search leaves it
    arguments = ["enjoy", "--algo", "es", "--env", "CartPole-v1", "-f", "logs", "--no-render"]
    check_one_line_error(arguments, ["No model found for es", "--exp-id N picks another"], capsys)
    arguments.append("--load-last-checkpoint")
    check_one_line_error(arguments, ["No checkpoint found for es", "--exp-id N picks another"], capsys)


def check_one_line_error(arguments, words, capsys):
    with pytest.raises(SystemExit) as exit_:
        zoo.main(arguments)
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert error.count("\n") == 1
    assert all(word in error for word in words), error


def test_the_zoos_own_parser_answers_under_our_name(capsys):
    with pytest.raises(SystemExit) as exit_:
        zoo.main(["train", "--algo"])
    assert exit_.value.code == 2
    assert "sb3_wng.zoo train: error: argument --algo" in capsys.readouterr().err
