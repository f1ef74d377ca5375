"""What is recorded of a run is what was given, once, in its place; a job finds its run again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import RunStatus

from flyball.controllers.bootstrap import Interval
from flyball.controllers.cascade import Cascade
from flyball.controllers.evaluation import Choices, Evaluation, Rung
from flyball.datapaths.errors import StorageError
from flyball.platform.tracking import JOB_TAG, Tracking, open_tracking
from flyball.platform.tracking.address import resolve_address
from flyball.platform.tracking.entries import flat_params, metric_name


def _rung(name: str, accuracy: float, utilization: float) -> Rung:
    def about(value: float) -> Interval:
        return Interval(value, value - 0.01, value + 0.01)

    return Rung(
        name=name,
        accuracy=about(accuracy),
        utilization=about(utilization),
        gross=about(0.4),
        net=about(0.45),
        reward=about(1.25),
        detail=f"what {name} does",
    )


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    """Three fixed arms and a learned controller that beats their mixture by 2 points."""
    fixed = tuple(
        _rung(f"fixed_{u}", accuracy, u) for u, accuracy in ((0.25, 0.5), (0.5, 0.7), (1.0, 0.9))
    )
    gain = {"controller_val": Interval(0.03, 0.01, 0.05), "test": Interval(0.02, 0.0, 0.04)}
    return Evaluation(
        arms=(0.25, 0.5, 1.0),
        classes=("cat", "dog"),
        account="gross",
        level=0.95,
        samples={"controller_val": 10, "test": 20},
        full_macs=1000,
        controller_macs=10,
        context_macs=100,
        rungs=(*fixed, _rung("learned", 0.88, 0.6)),
        validation_rungs=(*fixed[:2], _rung("fixed_1", 0.95, 1.0), _rung("learned", 0.91, 0.55)),
        budget_curve=(),
        gain_over_static=gain,
        gain_at_gross=gain,
        share_of_informed_ceiling={"controller_val": 0.25, "test": None},
        choices=Choices(1, (0, 2), Cascade((0, 2), (0.9,)), (0, 2)),
        histogram=(0.2, 0.3, 0.5),
        class_histogram=((0.2, 0.3, 0.5), (0.2, 0.3, 0.5)),
    )


def _metric(tracking: Tracking, run_id: str, name: str) -> list[tuple[int, float]]:
    history = tracking.client.get_metric_history(run_id, name)
    return sorted((point.step, point.value) for point in history)


def test_an_interrupted_job_goes_on_with_its_run(tracking: Tracking) -> None:
    first = tracking.start_run("digits", key="resumed")
    first.finish("FAILED")
    again = tracking.start_run("digits", key="resumed")
    assert again.run_id == first.run_id
    info = tracking.client.get_run(again.run_id).info
    assert info.status == RunStatus.to_string(RunStatus.RUNNING)
    assert info.end_time is None or info.status == "RUNNING"
    assert tracking.start_run("digits", key="another").run_id != first.run_id


def test_a_finished_job_that_is_repeated_gets_a_run_of_its_own(tracking: Tracking) -> None:
    first = tracking.start_run("digits", key="repeated")
    first.finish()
    second = tracking.start_run("digits", key="repeated")
    assert second.run_id != first.run_id
    assert first.is_finished
    assert not second.is_finished
    found = tracking.find_run("repeated")
    assert found is not None
    assert found.run_id == second.run_id
    assert tracking.find_run("never run") is None


def test_a_run_knows_its_job_name_tags_and_settings(tracking: Tracking) -> None:
    settings = {"path": {"network": {"stages": ((8,), (16,)), "norm": "group"}}, "seed": 3}
    run = tracking.start_run("a name", key="settings", tags={"sweep": "s1"}, params=settings)
    recorded = tracking.client.get_run(run.run_id)
    assert recorded.info.run_name == "a name"
    assert recorded.data.tags[JOB_TAG] == "settings"
    assert recorded.data.tags["sweep"] == "s1"
    assert recorded.data.params == {
        "path.network.stages": "((8,), (16,))",
        "path.network.norm": "group",
        "seed": "3",
    }


def test_a_setting_that_differs_when_a_run_goes_on_is_not_lost(tracking: Tracking) -> None:
    tracking.start_run("a", key="changed", params={"workers": 1, "seed": 2})
    run = tracking.start_run("a", key="changed", params={"workers": 4, "seed": 2, "new": 5})
    data = tracking.client.get_run(run.run_id).data
    assert data.params == {"workers": "1", "seed": "2", "new": "5"}
    assert data.tags["resumed.workers"] == "4"
    assert "resumed.seed" not in data.tags


def test_any_number_of_settings_of_any_length_is_taken(tracking: Tracking) -> None:
    many = {f"setting_{i}": i for i in range(230)}
    long = {"one": "x" * 9000 + "1", "two": "x" * 9000 + "2"}
    run = tracking.start_run("a", key="many", params={**many, **long})
    params = tracking.client.get_run(run.run_id).data.params
    assert len(params) == 232
    assert params["one"] != params["two"]
    assert len(params["one"]) == 500


def test_nested_settings_get_dotted_names() -> None:
    assert flat_params({"a": {"b": {"c": 1}, "d": None}, "e": ""}) == {
        "a.b.c": "1",
        "a.d": "None",
        "e": "",
    }


def test_a_metric_name_keeps_what_mlflow_takes() -> None:
    assert metric_name("val/accuracy_at_utilization") == "val/accuracy_at_utilization"
    assert metric_name("fixed(0.5)=x%") == "fixed_0.5__x_"


def test_a_long_curve_arrives_whole_and_in_order(tracking: Tracking) -> None:
    run = tracking.start_run("curve", key="curve")
    points = [(step, {"reward": step / 7, "entropy": 1.0 - step}) for step in range(1300)]
    run.log_curve(points)  # 2,600 figures: three requests
    assert _metric(tracking, run.run_id, "reward") == [(s, v["reward"]) for s, v in points]
    assert _metric(tracking, run.run_id, "entropy") == [(s, v["entropy"]) for s, v in points]


def test_the_figures_of_one_request_share_one_moment(tracking: Tracking) -> None:
    run = tracking.start_run("batch", key="batch")
    run.log_curve([(step, {"reward": 0.0}) for step in range(1000)])
    history = tracking.client.get_metric_history(run.run_id, "reward")
    assert len({point.timestamp for point in history}) == 1


def test_a_ladder_is_a_curve_figures_and_a_table(
    tracking: Tracking, evaluation: Evaluation
) -> None:
    run = tracking.start_run("ladder", key="ladder")
    run.log_ladder(evaluation.to_json())
    curve = _metric(tracking, run.run_id, "val/accuracy_at_utilization")
    assert curve == [(25, 0.5), (50, 0.7), (100, 0.95)]
    assert _metric(tracking, run.run_id, "test/accuracy_at_utilization")[-1] == (100, 0.9)
    figures = tracking.client.get_run(run.run_id).data.metrics
    assert figures["summary/test/learned/accuracy"] == 0.88
    assert figures["summary/test/gain_over_static"] == 0.02
    assert figures["summary/controller_val/share_of_informed_ceiling"] == 0.25
    assert figures["summary/dominated"] == 0.0
    assert "summary/test/share_of_informed_ceiling" not in figures
    rows = _table(tracking, run.run_id)
    assert len(rows) == 8
    learned = next(r for r in rows if (r["split"], r["rung"]) == ("test", "learned"))
    assert (learned["accuracy"], learned["accuracy_low"]) == (0.88, 0.87)
    assert learned["detail"] == "what learned does"


def test_a_ladder_recorded_twice_is_one_ladder(tracking: Tracking, evaluation: Evaluation) -> None:
    run = tracking.start_run("twice", key="twice")
    run.log_ladder(evaluation.to_json())
    once = _table(tracking, run.run_id)
    run.log_ladder(evaluation.to_json())
    assert _table(tracking, run.run_id) == once
    tags = tracking.client.get_run(run.run_id).data.tags
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [
        {"path": "evaluation/ladder.json", "type": "table"}
    ]


def test_a_file_is_copied_under_its_folder(tracking: Tracking, tmp_path: Path) -> None:
    picture = tmp_path / "ladder.png"
    picture.write_bytes(b"\x89PNG and so on")
    run = tracking.start_run("file", key="file")
    run.log_file(picture, "figures")
    copied = tracking.client.download_artifacts(run.run_id, "figures/ladder.png")
    assert Path(copied).read_bytes() == picture.read_bytes()
    with pytest.raises(StorageError, match="there is no such file"):
        run.log_file(tmp_path / "missing.png")


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_ends_as_it_is_told(tracking: Tracking, status: Any) -> None:
    run = tracking.start_run("end", key=f"end {status}")
    run.finish(status)
    info = tracking.client.get_run(run.run_id).info
    assert info.status == status
    assert info.end_time is not None


def test_the_link_of_a_local_run_says_how_to_open_it(tracking: Tracking) -> None:
    run = tracking.start_run("link", key="link")
    page, command = run.link.splitlines()
    experiment = tracking.experiment_id
    assert page == f"http://127.0.0.1:5000/#/experiments/{experiment}/runs/{run.run_id}"
    assert command.strip() == f"after: mlflow ui --backend-store-uri '{tracking.uri}'"


def test_the_link_of_a_server_is_its_own_page_without_the_password(tmp_path: Path) -> None:
    address = resolve_address("https://me:secret@host:8080/mlflow/", tmp_path)
    tracking = Tracking(address, MlflowClient(tracking_uri=address.uri), "flyball", "3")
    assert (
        tracking.link("experiments/3/runs/ab") == "https://host:8080/mlflow/#/experiments/3/runs/ab"
    )


def test_after_a_move_new_runs_write_where_the_folder_is_now(
    tracking: Tracking, tmp_path: Path
) -> None:
    old = tracking.start_run("before", key="moved")
    assert tracking.address.database is not None
    shutil.copytree(tracking.address.database.parent, tmp_path / "moved")
    there = open_tracking(None, tmp_path / "moved")
    new = there.start_run("after", key="moved")
    assert new.run_id != old.run_id
    artifacts = there.client.get_run(new.run_id).info.artifact_uri
    assert artifacts.startswith((tmp_path / "moved" / "mlartifacts").as_uri())
    kept = there.client.get_run(old.run_id)
    renamed = there.client.get_experiment(kept.info.experiment_id).name
    assert renamed == f"flyball {tracking.experiment_id} (files in {tracking.address.artifacts})"
    assert open_tracking(None, tmp_path / "moved").experiment_id == there.experiment_id


def test_a_place_that_fails_during_the_work_is_told_plainly(
    tracking: Tracking, tmp_path: Path
) -> None:
    assert tracking.address.database is not None
    shutil.copytree(tracking.address.database.parent, tmp_path / "runs")
    there = open_tracking(None, tmp_path / "runs")
    run = there.start_run("full", key="full")
    shutil.rmtree(tmp_path / "runs" / "mlartifacts", ignore_errors=True)
    (tmp_path / "runs" / "mlartifacts").write_text("in the way")
    picture = tmp_path / "ladder.png"
    picture.write_bytes(b"")
    with pytest.raises(StorageError, match=r"Copying ladder\.png.*finished stages are kept"):
        run.log_file(picture)


def test_a_full_disk_is_told_as_one(tracking: Tracking, tmp_path: Path) -> None:
    assert tracking.address.database is not None
    shutil.copytree(tracking.address.database.parent, tmp_path / "runs")
    there = open_tracking(None, tmp_path / "runs")
    run = there.start_run("full", key="full")
    engine = there.client._tracking_client.store.engine

    def allow_no_page_more(connection: Any, *_: Any) -> None:
        connection.execute("PRAGMA max_page_count = 1")

    sqlalchemy.event.listen(engine, "checkout", allow_no_page_more)
    many = {f"figure{number}": 0.5 for number in range(900)}
    with pytest.raises(StorageError, match=r"failed: the disk is full\. Look whether .* has room"):
        run.log_metrics(many)


def _table(tracking: Tracking, run_id: str) -> list[dict[str, Any]]:
    """What MLflow itself reads as the run's table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", tracking.uri)  # load_table asks the global address
        table = tracking.client.load_table(
            tracking.experiment_id, "evaluation/ladder.json", run_ids=[run_id]
        )
    rows: list[dict[str, Any]] = table.to_dict("records")
    return rows
