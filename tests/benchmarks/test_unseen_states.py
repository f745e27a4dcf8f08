"""Movement is measured where it is said to be, and the page says what the file says."""

import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

pd = pytest.importorskip("pandas")
pytest.importorskip("pybullet_envs_gymnasium")

from sb3_wng import WNPG  # noqa: E402
from sb3_wng.benchmarks import unseen_states  # noqa: E402
from sb3_wng.benchmarks.records import append_records, read_records, write_records  # noqa: E402


def pendulum(n_envs, seed=0):
    return VecNormalize(make_vec_env("Pendulum-v1", n_envs, seed=seed))


def test_a_shift_of_all_actions_is_measured_everywhere_and_another_where_it_is():
    model = WNPG("MlpPolicy", pendulum(2), n_steps=64, n_critic_updates=0, seed=0, policy_kwargs={"net_arch": []})
    head = model.policy.action_net

    def train():
        with torch.no_grad():
            if model.num_timesteps == 128:
                head.bias += 0.1
            else:
                head.weight += torch.tensor([[0.0, 0.0, 0.1]])  # of the speed, which is small in first steps

    model.train = train
    movement = unseen_states.Movement(pendulum(1, seed=1), interval=1)
    model.learn(256, callback=movement)
    everywhere, by_speed = movement.records
    assert [row["timesteps"] for row in movement.records] == [128, 256]
    assert everywhere["on_rollout"] == pytest.approx(0.01, rel=1e-3)  # of a spread of 1
    assert everywhere["on_first_steps"] == pytest.approx(0.01, rel=1e-3)
    assert everywhere["parameter_step"] == pytest.approx(0.1, rel=1e-3)
    speeds = model.rollout_buffer.observations[..., 2]
    assert by_speed["on_rollout"] == pytest.approx(0.01 * np.square(speeds).mean(), rel=1e-3)
    assert by_speed["on_first_steps"] != pytest.approx(by_speed["on_rollout"], rel=0.02)


def test_a_run_leaves_a_record_of_each_part_and_the_page_its_numbers(tmp_path, monkeypatch):
    for name, value in (("INTERVAL", 1), ("N_STARTS", 1), ("N_FIRST_STEPS", 3), ("N_EPISODES", 2), ("DAMPINGS", (0.1,))):
        monkeypatch.setattr(unseen_states, name, value)
    path = tmp_path / unseen_states.CSV
    assert unseen_states.section(tmp_path) == ""
    append_records(path, unseen_states.run(0.1, 20, n_timesteps=4096))
    rows = pd.read_csv(path)
    assert list(rows.timesteps) == [1024, 2048, 3072, 4096]
    assert ((rows.on_rollout > 0.002) & (rows.on_rollout <= 0.0201)).all()  # within the radius
    assert rows.falls.isna().sum() == 3
    assert rows.falls.iloc[-1] == 2  # after two seconds of training it does not stand
    text = unseen_states.section(tmp_path)
    assert "2 fell with damping 0.1" in text
    assert f"| to 4,096 steps | {rows.on_rollout.iloc[-1]:.3f} |" in text
    monkeypatch.setattr(unseen_states, "DAMPINGS", (0.1, 1.0))
    assert unseen_states.section(tmp_path) == ""  # one of them is missing
    append_records(path, [{**row, "damping": "1.0", "falls": row["falls"] and 1} for row in read_records(path)])
    append_records(path, [{**read_records(path)[0], "seed": 21}])
    assert "2 fell with damping 0.1 (by seed, 2 of 2 within 50 steps), 1 fell" in unseen_states.section(tmp_path)
    monkeypatch.setattr(unseen_states, "DAMPINGS", (0.1,))
    write_records(path, read_records(path)[:4])
    changed = read_records(path)
    changed[-1]["on_rollout"] = "0.777"
    write_records(path, changed)
    assert "| to 4,096 steps | 0.777 |" in unseen_states.section(tmp_path)
