"""What a penalty costs is measured for every distance, and the page shows ratios."""

from sb3_wng.benchmarks import penalty_cost
from sb3_wng.benchmarks.records import append_records


def test_every_distance_is_measured_and_shown_relative_to_none(tmp_path, monkeypatch):
    monkeypatch.setattr(penalty_cost, "N_ENVS", 2)
    records = penalty_cost.measure("Pendulum-v1", repeats=1, n_steps=32)
    assert [record["subject"] for record in records] == list(penalty_cost.VARIANTS)
    assert all(record["value"] > 0 for record in records)
    assert penalty_cost.section(tmp_path) == ""
    append_records(tmp_path / penalty_cost.CSV, [{**record, "value": 10.0 * i + 10} for i, record in enumerate(records)])
    text = penalty_cost.section(tmp_path)
    assert "| none | 10 | 1.00 |" in text
    assert "| closed_form | 20 | 2.00 |" in text
