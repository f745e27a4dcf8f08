"""The part of the peers' own tests that is quick, with our class in the place of theirs."""

import peers
import pytest

# peer -> (test files, number of tests that TRPO passes there)
QUICK = {
    "contrib": (["test_run.py", "test_save_load.py", "test_utils.py", "test_dict_env.py"], 17),
    "sb3": (["test_buffers.py", "test_gae.py", "test_sde.py", "test_spaces.py", "test_train_eval_mode.py"], 32),
}


@pytest.mark.slow
@pytest.mark.parametrize("peer", QUICK)
def test_wnpg_passes_the_tests_of_the_class_it_replaces(peer: str) -> None:
    files, expected = QUICK[peer]
    try:
        report = peers.run_peer(peer, "wnpg", files)
    except peers.Unavailable as error:
        pytest.skip(str(error))
    assert not report.of("failed"), report.output
    assert len(report.of("passed")) >= expected, report.output


@pytest.mark.slow
def test_es_passes_the_tests_of_ars() -> None:
    try:
        report = peers.run_peer("contrib", "es", ["test_run.py", "test_save_load.py", "test_deterministic.py"])
    except peers.Unavailable as error:
        pytest.skip(str(error))
    assert not report.of("failed"), report.output
    assert len(report.of("passed")) >= 9, report.output
