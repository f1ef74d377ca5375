"""What nodes are asked, how their answers are judged, and what counts as the same code."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

import flyball
from flyball.datapaths.errors import StorageError
from flyball.platform.cluster import ray_session
from flyball.platform.nodes import (
    NodeState,
    check_nodes,
    code_fingerprint,
    find_skew,
    look_at_nodes,
    source_fingerprint,
    versions_here,
)

STORE = 80 * 2**20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    running = Cluster(
        initialize_head=True,
        connect=False,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE},
    )
    running.add_node(num_cpus=1, num_gpus=2, object_store_memory=STORE)
    yield running
    running.shutdown()  # type: ignore[no-untyped-call]


def test_every_node_answers_for_itself_and_nothing_stays_behind(
    cluster: Cluster, tmp_path: Path
) -> None:
    root = tmp_path / "not" / "there"
    with ray_session(cluster.address):
        head, worker = check_nodes(root)
    assert (head.is_head, worker.is_head) == (True, False)
    assert head.node != worker.node
    assert (head.gpus, worker.gpus) == (0, 2)
    for state in (head, worker):
        assert state.sources == source_fingerprint()
        assert state.versions == versions_here()
        assert state.sees_storage
        assert state.free_mb > 0
    assert list(tmp_path.iterdir()) == []


def test_a_node_without_an_answer_in_time_is_told(cluster: Cluster, tmp_path: Path) -> None:
    with ray_session(cluster.address):
        states = look_at_nodes(tmp_path, patience_s=0)
    assert [state.trouble for state in states] == ["it did not answer in time"] * 2
    assert len(find_skew(states)) == 2


def test_a_folder_that_nobody_can_write_is_refused() -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        look_at_nodes(Path("/dev/null/runs"))


@pytest.fixture
def state() -> NodeState:
    return NodeState(
        "1",
        "10.0.0.2",
        is_head=False,
        sources=source_fingerprint(),
        versions=versions_here(),
        cpus=1,
        gpus=0,
        free_mb=1,
        sees_storage=True,
    )


def test_a_node_with_this_code_and_these_versions_has_no_fault(state: NodeState) -> None:
    assert find_skew([state]) == []


def test_other_versions_and_other_sources_are_named(state: NodeState) -> None:
    older = replace(state, versions=state.versions | {"ray": "2.59.0"})
    changed = replace(state, sources="0" * 16)
    version, source = find_skew([older, state, changed])
    assert version == f"Node 10.0.0.2 has ray 2.59.0 instead of {versions_here()['ray']}."
    assert "Node 10.0.0.2 has other flyball sources (0000000000000000" in source


def test_the_fingerprint_is_of_sources_that_are_imported_and_of_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        (root / "layer").mkdir(parents=True)
        (root / "layer" / "__init__.py").write_text("x = 1\n", encoding="utf-8")
    monkeypatch.setattr(flyball, "__path__", [str(first), str(second)])
    before, code = source_fingerprint(), code_fingerprint()
    # Bytecode and notes are none; nor is a layer that an earlier one hides.
    (first / "layer" / "note.txt").write_text("x", encoding="utf-8")
    (first / "layer" / "code.pyc").write_bytes(b"x")
    (second / "layer" / "__init__.py").write_text("x = 2\n", encoding="utf-8")
    assert source_fingerprint() == before
    (first / "layer" / "operator.cpp").write_text("int x;", encoding="utf-8")
    assert source_fingerprint() != before
    assert code_fingerprint() != code


def test_a_copy_that_a_loaded_model_puts_on_the_path_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = source_fingerprint()
    (tmp_path / "flyball" / "platform").mkdir(parents=True)
    (tmp_path / "flyball" / "platform" / "__init__.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert str(tmp_path / "flyball") in list(flyball.__path__)
    assert source_fingerprint() == before
