"""RL-Zoo trains, continues and tunes populations with the shipped hyperparameters."""

import inspect

import pytest

pytest.importorskip("rl_zoo3")

import gymnasium
import optuna
import rl_zoo3.hyperparams_opt
import yaml

from sb3_wng import SVPG, zoo
from sb3_wng.population.particles import KINDS

SMALL = ("n_envs:4", "n_particles:2", "n_steps:32", "algorithm_kwargs:dict(batch_size=32,n_critic_updates=1)")


def test_the_shipped_hyperparameters_build_a_population_for_every_task():
    zoo.register()
    zoo_keys = {"n_timesteps", "n_envs", "normalize"}
    known = set(inspect.signature(SVPG).parameters)
    for env_id, entry in yaml.safe_load(zoo.hyperparams_file("svpg").read_text()).items():
        assert set(entry) <= known | zoo_keys, env_id
        assert entry["n_envs"] % entry["n_particles"] == 0
        assert env_id == "default" or env_id in gymnasium.registry
        assert all(isinstance(entry[key], (int, float)) for key in ("n_timesteps", "n_steps"))
        arguments = {key: entry[key] for key in ("algorithm", "algorithm_kwargs", "n_particles", "use_sde") if key in entry}
        SVPG("MlpPolicy", "Pendulum-v1", **arguments, device="cpu")


def test_the_zoo_trains_enjoys_and_continues(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train = ["train", "--algo", "svpg", "--env", "CartPole-v1", "-n", "256", "--eval-freq", "32", "--eval-episodes", "1"]
    zoo.main([*train, "--save-freq", "-1", "--seed", "1", "-params", *SMALL])
    assert str(zoo.hyperparams_file("svpg")) in capsys.readouterr().out
    run = tmp_path / "logs" / "svpg" / "CartPole-v1_1"
    assert (run / "best_model.zip").is_file()
    zoo.main(["enjoy", "--algo", "svpg", "--env", "CartPole-v1", "-f", "logs", "-n", "20", "--no-render", "--load-best"])
    zoo.main([*train, "-i", str(run / "CartPole-v1.zip"), "-params", *SMALL])
    assert "Loading pretrained agent" in capsys.readouterr().out


@pytest.mark.parametrize("particles", KINDS)
def test_sampled_hyperparameters_are_constructor_arguments_and_come_back_from_a_finished_trial(particles):
    zoo.register()
    trial = optuna.create_study().ask()
    trial.set_user_attr("particles", particles)
    trial.set_user_attr("algorithm_kwargs", '{"n_critic_updates": 3}')
    sampled = rl_zoo3.hyperparams_opt.HYPERPARAMS_SAMPLER["svpg"](trial, 3, 8, {})
    assert set(sampled) <= set(inspect.signature(SVPG).parameters)
    assert rl_zoo3.hyperparams_opt.HYPERPARAMS_CONVERTER["svpg"](trial.params) == sampled
    assert ("learning_rate" in sampled) != KINDS[particles].is_natural  # which natural particles do not read
    assert ("gae_lambda" in sampled) == KINDS[particles].has_critic
    assert sampled["algorithm_kwargs"]["n_critic_updates"] == 3
    if not KINDS[particles].has_critic:
        sampled["algorithm_kwargs"] = {}
    SVPG("MlpPolicy", "Pendulum-v1", particles, n_particles=2, device="cpu", **sampled)


@pytest.mark.parametrize(
    ("particles", "name", "given"), [("pg", "learning_rate", {}), ("npg", "target_kl", {"cg_max_steps": 3})]
)
def test_a_search_samples_what_the_particles_read_and_keeps_the_rest(particles, name, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    built = []
    setup = SVPG._setup_model
    monkeypatch.setattr(SVPG, "_setup_model", lambda model: (built.append(model.algorithm_kwargs), setup(model)))
    settings = [f"algorithm:'{particles}'", "n_particles:2", "n_envs:2", f"algorithm_kwargs:{given}"]
    search = ["--n-trials", "1", "--n-evaluations", "1", "--eval-episodes", "1", "-n", "64", "--storage", "s.log"]
    command = ["train", "--algo", "svpg", "--env", "CartPole-v1"]
    zoo.main([*command, "-optimize", *search, "--study-name", "s", "-params", *settings])
    (trial,) = optuna.load_study(
        study_name="s", storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("s.log"))
    ).trials
    assert trial.user_attrs["particles"] == particles
    assert name in trial.params
    assert built
    assert given.items() <= built[0].items()


def test_a_search_samples_the_coefficient_of_policies_that_repel(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    search = ["--n-trials", "1", "--n-evaluations", "1", "--eval-episodes", "1", "-n", "64", "--storage", "s.log"]
    command = ["train", "--algo", "wassersteinpopulation", "--env", "CartPole-v1", "-optimize", "--study-name", "s", *search]
    settings = ["algorithm:'pg'", "n_policies:2", "n_envs:2"]
    zoo.main([*command, "-params", *settings])
    (trial,) = optuna.load_study(
        study_name="s", storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("s.log"))
    ).trials
    assert trial.user_attrs["particles"] == "pg"
    assert "wasserstein_coef" in trial.params
    with pytest.raises(SystemExit):
        zoo.main([*command, "-params", *settings, "algorithm_kwargs:dict(policy_class=dict)"])
    assert "algorithm_kwargs of a search must be numbers" in capsys.readouterr().err
