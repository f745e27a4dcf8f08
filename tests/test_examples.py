"""The examples that draw the documentation's pictures run, and the others can be asked for help."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments, cwd):
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    result = subprocess.run(
        command, cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_every_example_says_what_it_takes(example, tmp_path):
    assert "usage:" in run(example, "--help", cwd=tmp_path)


def test_the_picture_of_the_three_metrics_is_drawn(tmp_path):
    run("three_metrics.py", "--output", "drawn.png", cwd=tmp_path)
    with Image.open(tmp_path / "drawn.png") as image:
        assert image.width > 800


def test_a_robot_like_another_is_trained_and_drawn(tmp_path):
    pytest.importorskip("pybullet_envs_gymnasium")
    printed = run("like_that_agent.py", "--steps", "2048", "--output", "drawn.png", cwd=tmp_path)
    assert all(f"{name:12} return" in printed for name in ("the agent", "attracted", "indifferent", "repelled"))
    assert (tmp_path / "drawn.png").exists()
