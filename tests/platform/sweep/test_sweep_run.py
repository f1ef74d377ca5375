"""Whole sweeps on real Ray, Tune and MLflow: what they give."""

import json
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import flyball.platform.sweep.run as run_module
from flyball.datapaths.errors import (
    BadInput,
    CodeSkew,
    ForeignArtifact,
    InvalidSetting,
    StorageError,
)
from flyball.platform.sweep.folder import SweepFolder
from flyball.platform.sweep.result import PointResult
from flyball.platform.tracking import list_versions, open_tracking
from sweeping import PLAIN, a_job, beside, check_recorded, figures, recorded, sweep

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"
)


def test_a_sweep_gives_front_runs_and_counts_and_the_same_bits_again(
    root: Path, session: None
) -> None:
    job = a_job(root)
    space = ("reward.gamma2=1.5,8", "arms=0.1,0.5,1|0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1")
    first = sweep(job, *space, registers=True)
    assert first.counts.trained == 4
    assert not first.counts.failed
    assert not first.was_finished
    assert first.counts.forwards["trials"] == 0
    for name in ("front.json", "front.txt", "front.png", "points.csv", "sweep.json"):
        assert (first.folder / name).stat().st_size > 0
    check_recorded(job, first)
    assert set(first.versions) == {point.key for point in first.front.front}
    known = list_versions(open_tracking(None, root), job.model_name)
    assert {a for version in known for a in version.aliases} == set(first.front.aliases)
    assert all(point.run_id for point in SweepFolder(first.folder).results().values())

    shown = sweep(job, *space)
    assert shown.was_finished
    assert shown.counts.trained == 0
    assert shown.counts.reused == 4
    assert figures(shown) == figures(first)
    assert shown.counts.forwards == {"phase1": 0, "outcomes": 0, "trials": 0}

    shutil.rmtree(first.folder)
    again = sweep(job, *space, concurrent=2)
    assert again.counts.trained == 4
    assert figures(again) == figures(first)


def test_points_end_early_where_asked_and_stay_ended(root: Path, session: None) -> None:
    job = a_job(root, "learn.validations=10")
    space = ("learn.learning_rate=1e-7,1e-3,3e-3,1e-2,2e-7,3e-7",)
    result = sweep(job, *space, asha=True)
    folder = SweepFolder(result.folder)
    assert result.counts.ended_early == len(folder.stopped()) > 0
    assert len(folder.stopped()) + len(folder.results()) == 6
    assert {run.info.status for run in recorded(job, result)} == {"FINISHED"}
    folder.outcome_file.unlink()
    resumed = sweep(job, *space, asha=True, resume=True)
    assert resumed.counts.trained == 0
    assert figures(resumed) == figures(result)


def test_optuna_proposes_the_same_points_from_a_seed_though_it_is_interrupted(
    root: Path, session: None
) -> None:
    job = a_job(root, PLAIN)
    space = ("reward.gamma2=uniform(0.5,8)", "learn.entropy=0,0.1")
    result = sweep(job, *space, search="optuna", samples=5)
    assert len(figures(result)) == 5
    shutil.rmtree(result.folder)

    def has_two() -> bool:
        return len(list(result.folder.glob("points/*/result.json"))) >= 2

    with (
        beside(has_two, lambda: signal.raise_signal(signal.SIGINT)),
        pytest.raises(KeyboardInterrupt),
    ):
        sweep(job, *space, search="optuna", samples=5)
    assert 2 <= len(SweepFolder(result.folder).results()) < 5
    # Tune's own state holds what the sampler had drawn.
    resumed = sweep(job, *space, search="optuna", samples=5, resume=True)
    assert figures(resumed) == figures(result)


def test_a_population_finds_what_points_find_alone(root: Path, session: None) -> None:
    job = a_job(root, PLAIN)
    space = ("reward.gamma2=1.5,8", "learn.learning_rate=1e-3,1e-2")
    alone = sweep(job, *space)
    together = sweep(job, *space, population=4)
    assert together.counts.forwards["trials"] == 0
    assert set(figures(together)) == set(figures(alone))
    for one, other in zip(alone.front.points, together.front.points, strict=True):
        # A batched product may add in another order: a logit, and a choice, may differ.
        assert one.accuracy.mean == pytest.approx(other.accuracy.mean, abs=0.02)
    check_recorded(job, together)

    # The same bits where a kill came in the middle of the batch's results, and anew.
    folder = SweepFolder(together.folder)
    folder.outcome_file.unlink()
    for key in sorted(folder.results())[1:3]:
        folder.result_file(key).unlink()
    resumed = sweep(job, *space, population=4, resume=True)
    assert (resumed.counts.trained, resumed.counts.reused) == (2, 2)
    assert figures(resumed) == figures(together)
    check_recorded(job, resumed)
    shutil.rmtree(together.folder)
    assert figures(sweep(job, *space, population=4)) == figures(together)


def test_every_algorithm_can_be_swept(root: Path, session: None) -> None:
    job = a_job(root, "learn.estimator=ratio", "learn.updates=20", "learn.batch_size=64")
    result = sweep(job, "learn.algorithm=plain,rllib_atlas,rllib_runner,ppo,dqn")
    assert not result.counts.failed
    assert result.counts.forwards["trials"] == 0
    assert len(result.front.points) == 5
    check_recorded(job, result)


def test_a_front_that_was_left_out_of_the_registry_is_put_there_later(
    root: Path, session: None
) -> None:
    job = a_job(root, PLAIN, "learn.seed=3")
    space = "reward.gamma2=1.5,8"
    first = sweep(job, space)
    assert not first.versions
    later = sweep(job, space, registers=True)
    assert (later.counts.trained, later.counts.reused) == (0, 2)
    assert set(later.versions) == {point.key for point in first.front.front}
    again = sweep(job, space, registers=True)
    assert again.was_finished
    assert again.versions == later.versions
    check_recorded(job, later)


def test_optuna_may_propose_a_point_twice(root: Path, session: None) -> None:
    job = a_job(root, PLAIN)
    search: dict[str, Any] = {"search": "optuna", "samples": 5}
    first = sweep(job, "reward.gamma2=1.5,8", **search)
    assert len(first.front.points) == 2
    assert first.counts.trained == 2
    assert sweep(job, "reward.gamma2=1.5,8", **search).was_finished
    check_recorded(job, first)


def test_a_folder_of_another_sweep_is_refused_and_kept(root: Path, session: None) -> None:
    job = a_job(root, PLAIN, "learn.seed=4")
    first = sweep(job, "reward.gamma2=2")
    with pytest.raises(BadInput, match="There is no sweep to resume in") as told:
        sweep(job, "reward.gamma2=3", resume=True)
    other = Path(str(told.value).partition("resume in ")[2].partition(". ")[0])
    shutil.copytree(first.folder, other, dirs_exist_ok=True)
    before = sorted((file, file.stat().st_mtime_ns) for file in other.rglob("*.json"))
    for resume in (False, True):
        with pytest.raises(ForeignArtifact, match=r"space is \['reward.gamma2=2'\] there"):
            sweep(job, "reward.gamma2=3", resume=resume)
    assert sorted((file, file.stat().st_mtime_ns) for file in other.rglob("*.json")) == before


def test_a_folder_that_cannot_be_written_ends_a_batch_with_what_to_do(
    root: Path, session: None
) -> None:
    job = a_job(root, PLAIN, "learn.seed=6")
    result = sweep(job, "reward.gamma2=1,2", population=2)
    folder = SweepFolder(result.folder)
    folder.outcome_file.unlink()
    gone = folder.point(result.front.points[0].key)
    shutil.rmtree(gone)
    gone.write_text("in the way")
    with pytest.raises(StorageError, match=r"Cannot write .*--set storage\.root.*--resume"):
        sweep(job, "reward.gamma2=1,2", population=2, resume=True)
    gone.unlink()
    resumed = sweep(job, "reward.gamma2=1,2", population=2, resume=True)
    assert (resumed.counts.trained, resumed.counts.reused) == (1, 1)
    assert figures(resumed) == figures(result)


@pytest.mark.parametrize("asha", [False, True])
def test_a_point_that_breaks_costs_the_others_nothing(
    root: Path, session: None, asha: bool
) -> None:
    job = a_job(root, "learn.optimizer=rmsprop", *(() if asha else (PLAIN,)))
    result = sweep(job, "learn.learning_rate=1e-3,1e30", asha=asha)
    assert [text.partition(":")[0] for text in result.counts.failed.values()] == ["NotFinite"]
    assert len(result.front.points) == 1
    assert Counter(run.info.status for run in recorded(job, result)) == {"FINISHED": 2, "FAILED": 1}
    with pytest.raises(BadInput, match="unfinished sweep"):
        sweep(job, "learn.learning_rate=1e-3,1e30", asha=asha)
    resumed = sweep(job, "learn.learning_rate=1e-3,1e30", asha=asha, resume=True)
    assert resumed.counts.failed == result.counts.failed
    assert not SweepFolder(result.folder).outcome_file.exists()


def test_trials_that_fit_nowhere_are_refused(root: Path, session: None) -> None:
    job = a_job(root, PLAIN)
    with pytest.raises(InvalidSetting, match="GPUs"):
        sweep(a_job(root), "reward.gamma1=0,1", gpus_per_trial=64.0)
    with pytest.raises(InvalidSetting, match="4096 CPUs"):
        sweep(job, "reward.gamma1=0,1", cpus_per_trial=4096.0)
    many = a_job(root, "compute.env_runners=4000", "learn.estimator=ratio")
    with pytest.raises(InvalidSetting, match=r"4000 env runners and 0 learners asks for 4001 CPUs"):
        sweep(many, "reward.gamma1=0,1")
    shared = a_job(root, "compute.learners=2", "compute.gpus_per_learner=64")
    with pytest.raises(InvalidSetting, match=r"2 learners asks for .*compute\.learners=0"):
        sweep(shared, "reward.gamma1=0,1")


def test_a_node_that_joined_with_other_code_ends_the_sweep(
    root: Path, session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This driver claims code that no worker has; what it asks of the nodes at first is true.
    monkeypatch.setattr(run_module, "is_joined", lambda address: True)
    monkeypatch.setattr(run_module, "code_fingerprint", lambda: "0" * 16)
    job = a_job(root, PLAIN, "learn.seed=7")
    with pytest.raises(CodeSkew, match=r"other flyball sources or versions .*`ray up cluster"):
        sweep(job, "reward.gamma1=0,1")
    monkeypatch.undo()
    result = sweep(job, "reward.gamma1=0,1", resume=True)
    assert result.counts.trained == 2
    check_recorded(job, result)


def test_results_are_plain_json(root: Path) -> None:
    job = a_job(root, PLAIN)
    sweep(job, "reward.gamma2=1.5")
    files = list((root / "sweeps").glob("*/points/*/result.json"))
    assert files
    for file in files:
        value = json.loads(file.read_text())
        assert PointResult.from_json(value).to_json() == value
