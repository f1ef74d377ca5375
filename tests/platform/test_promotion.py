"""Who serves an alias, on a real registry: judged, remembered, given back, never two at once."""

import argparse
import json
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flyball.controllers.bootstrap import Interval
from flyball.controllers.export import save_controller
from flyball.controllers.protocol import NetworkController
from flyball.datapaths.errors import FlyballError, InvalidSetting, UnknownName
from flyball.platform.governor import CONTROLLER_FOLDER, PATH_FOLDER, Governor
from flyball.platform.models_verb import add_models_arguments, run_models
from flyball.platform.tracking import (
    FrontEntry,
    Tracking,
    alias_history,
    figures_of,
    list_versions,
    open_tracking,
    promote,
    register_front,
    roll_back,
)
from flyball.platform.tracking import aliases as alias_module
from flyball.platform.tracking.aliases import AliasMove, checked_alias, moving_aliases, stand_in
from flyball.platform.tracking.versions import FIGURE_TAG

Versions = Callable[..., str]


def figures(accuracy: float, net: float, gain: float = 0.02) -> dict[str, float]:
    parts = (accuracy, net, gain)
    return figures_of(*(Interval(value, value - 0.01, value + 0.01) for value in parts))


@pytest.fixture
def model_of(tracking: Tracking, request: pytest.FixtureRequest) -> Versions:
    """Makes a model whose versions have these (accuracy, net[, gain]), and gives its name.

    Promotion goes by a version's tags alone: what it would serve is in `test_registry`.
    """

    def make(*achieved: tuple[float, ...]) -> str:
        client, name = tracking.client, f"model-{abs(hash(request.node.name))}"
        client.create_registered_model(name)
        run = client.create_run(tracking.experiment_id)
        for parts in achieved:
            version = client.create_model_version(name, run.info.artifact_uri, run.info.run_id)
            for figure, value in figures(*parts).items() if parts else ():
                tag = f"{FIGURE_TAG}{figure}"
                client.set_model_version_tag(name, version.version, tag, f"{value:.6g}")
        return name

    return make


@pytest.fixture
def remote(tracking: Tracking) -> Tracking:
    """The same registry seen as a server's: there is no file beside it to lock."""
    return replace(tracking, address=replace(tracking.address, database=None))


def holders(tracking: Tracking, name: str) -> dict[str, int]:
    aliases = tracking.client.get_registered_model(name).aliases
    return {alias: int(version) for alias, version in aliases.items()}


def test_a_version_that_is_better_in_one_of_accuracy_and_cost_is_promoted(
    tracking: Tracking, model_of: Versions
) -> None:
    name = model_of((0.9, 0.2), (0.92, 0.3), (0.85, 0.1))
    assert promote(tracking, name, 1).before is None
    assert promote(tracking, name, 2).before == 1
    done = promote(tracking, name, 3)
    assert (done.alias, done.version, done.before) == ("champion", 3, 2)
    assert holders(tracking, name) == {"champion": 3}
    moves = alias_history(tracking, name)
    assert [(m.before, m.version, m.why) for m in moves] == [
        (None, 1, "promoted"),
        (1, 2, "promoted"),
        (2, 3, "promoted"),
    ]


@pytest.mark.parametrize(
    ("worse", "told"),
    [
        ((0.885, 0.23), r"1\.50 points less accurate on controller_val and spends 0\.0300 more"),
        ((0.9, 0.25), r"as accurate on controller_val and spends 0\.0500 more"),
        ((0.87, 0.2), r"3\.00 points less accurate on controller_val and spends as much"),
    ],
)
def test_a_version_that_the_holder_dominates_is_refused_and_told_by_how_much(
    tracking: Tracking, model_of: Versions, worse: tuple[float, float], told: str
) -> None:
    name = model_of((0.9, 0.2), worse)
    promote(tracking, name, 1, "eco")
    with pytest.raises(InvalidSetting, match=f"version 2 is, by version 1, which is eco: .*{told}"):
        promote(tracking, name, 2, "eco")
    assert holders(tracking, name) == {"eco": 1}
    assert len(alias_history(tracking, name)) == 1
    promote(tracking, name, 2, "peak")  # nobody is peak: nobody dominates it


def test_a_version_of_equal_figures_is_not_dominated(
    tracking: Tracking, model_of: Versions
) -> None:
    name = model_of((0.9, 0.2), (0.9, 0.2))
    promote(tracking, name, 1)
    assert promote(tracking, name, 2).before == 1


def test_the_static_mixture_keeps_a_version_from_being_champion_alone(
    tracking: Tracking, model_of: Versions
) -> None:
    name = model_of((0.9, 0.2, -0.0125), (0.9, 0.2, 0.004))
    with pytest.raises(InvalidSetting, match=r"mixture is 1\.25 points more accurate"):
        promote(tracking, name, 1)
    assert promote(tracking, name, 1, "eco").note == ""
    assert "may be chance" in promote(tracking, name, 2).note


def test_a_budget_alias_is_for_versions_within_the_budget(
    tracking: Tracking, model_of: Versions
) -> None:
    name = model_of((0.9, 0.31))
    with pytest.raises(InvalidSetting, match=r"budget-30 spends 30 % .* spends 31\.0%"):
        promote(tracking, name, 1, "budget-30")
    assert promote(tracking, name, 1, "budget-31").version == 1


def test_versions_without_figures_are_not_promoted_and_give_way(
    tracking: Tracking, model_of: Versions
) -> None:
    name = model_of((), (0.5, 0.9))
    with pytest.raises(InvalidSetting, match="version 1 has none"):
        promote(tracking, name, 1)
    tracking.client.set_registered_model_alias(name, "champion", "1")
    assert "no figures to compare" in promote(tracking, name, 2).note


def test_a_champion_is_no_challenger_any_more(tracking: Tracking, model_of: Versions) -> None:
    name = model_of((0.9, 0.2))
    promote(tracking, name, 1, "challenger")
    promote(tracking, name, 1, "champion")
    assert holders(tracking, name) == {"champion": 1}
    again = promote(tracking, name, 1, "champion")
    assert (again.before, again.note) == (1, "It had the alias already.")
    assert len(alias_history(tracking, name)) == 2


def test_rolling_back_goes_from_holder_to_holder_to_the_first(
    tracking: Tracking, model_of: Versions
) -> None:
    name = model_of((0.90, 0.2), (0.91, 0.2), (0.92, 0.2), (0.93, 0.2))
    for version in (1, 2, 3):
        promote(tracking, name, version)
    assert (roll_back(tracking, name).version, roll_back(tracking, name).version) == (2, 1)
    with pytest.raises(InvalidSetting, match="has no such version"):
        roll_back(tracking, name)
    promote(tracking, name, 4)
    assert roll_back(tracking, name).version == 1
    assert [m.why for m in alias_history(tracking, name)].count("rolled back") == 3
    with pytest.raises(InvalidSetting, match=r"'peak' of .* has no such version"):
        roll_back(tracking, name, "peak")


def test_rolling_back_passes_over_a_version_that_was_deleted(
    tracking: Tracking, model_of: Versions
) -> None:
    name = model_of((0.90, 0.2), (0.91, 0.2), (0.92, 0.2))
    for version in (1, 2, 3):
        promote(tracking, name, version)
    tracking.client.delete_model_version(name, "2")
    assert roll_back(tracking, name).version == 1


def test_what_an_alias_can_be_given_back_to() -> None:
    def moves(*told: tuple[int | None, int, str]) -> list[AliasMove]:
        return [AliasMove("peak", version, before, why, 0) for before, version, why in told]

    assert stand_in([], None) == []
    assert stand_in([], 4) == [4]  # set by hand
    up = moves((None, 1, "promoted"), (1, 2, "promoted"))
    assert stand_in(up, 2) == [1, 2]
    assert stand_in(up, 9) == [1, 2, 9]  # set by hand later
    assert stand_in(up, 1) == [1]  # the second move was noted and not made
    assert stand_in([*up, *moves((2, 1, "rolled back"))], 1) == [1]
    assert stand_in(moves((7, 8, "promoted")), 8) == [7, 8]


_start_line: list[Any] = []


def _line_up(line: Any) -> None:
    _start_line.append(line)


def _promote_elsewhere(runs: Path, name: str, version: int) -> str:
    tracking = open_tracking(None, runs)
    _start_line[0].wait(timeout=60)
    return _told_by(tracking, name, version)


def _told_by(tracking: Tracking, name: str, version: int) -> str:
    try:
        return f"moved from {promote(tracking, name, version).before}"
    except FlyballError as error:
        return str(error)


def _assert_one_after_the_other(tracking: Tracking, name: str, told: list[str], count: int) -> None:
    """Later versions dominate earlier ones: whoever comes too late must have been refused."""
    assert holders(tracking, name) == {"champion": count}
    moves = alias_history(tracking, name)
    # Each began where the one before ended, so none was decided on a holder that had gone.
    assert [m.before for m in moves] == [None, *(m.version for m in moves[:-1])]
    assert [m.version for m in moves] == sorted(m.version for m in moves)
    assert sum(text.startswith("moved from") for text in told) == len(moves)
    assert all("dominated" in text or text.startswith("moved from") for text in told)


def test_processes_that_promote_at_once_leave_one_champion_and_the_whole_history(
    tracking: Tracking, model_of: Versions
) -> None:
    count = 2
    name = model_of(*((0.90 + 0.01 * v, 0.2) for v in range(count)))
    assert tracking.address.database is not None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["flyball.platform.models_verb"])  # imported once, not twice
    with ProcessPoolExecutor(count, context, _line_up, (context.Barrier(count),)) as pool:
        runs = [tracking.address.database.parent] * count
        told = list(pool.map(_promote_elsewhere, runs, [name] * count, range(1, count + 1)))
    _assert_one_after_the_other(tracking, name, told, count)


def test_where_no_file_can_be_locked_claims_in_the_registry_keep_movers_apart(
    remote: Tracking, model_of: Versions
) -> None:
    count = 3
    name = model_of(*((0.90 + 0.01 * v, 0.2) for v in range(count)))
    line = threading.Barrier(count)

    def promoted(version: int) -> str:
        line.wait(timeout=60)
        return _told_by(remote, name, version)

    with ThreadPoolExecutor(count) as pool:
        told = list(pool.map(promoted, range(1, count + 1)))
    _assert_one_after_the_other(remote, name, told, count)
    assert _claims(remote, name) == set()


def test_whoever_claims_second_waits_and_judges_by_what_it_finds_then(
    remote: Tracking, model_of: Versions
) -> None:
    name = model_of((0.9, 0.2), (0.92, 0.2), (0.91, 0.2))
    with ThreadPoolExecutor(1) as pool:
        with moving_aliases(remote, name) as mover:
            late = pool.submit(_told_by, remote, name, 3)
            while len(_claims(remote, name)) < 2:
                assert not late.done()
            mover.move("champion", 2, "promoted")
        assert "version 3 is, by version 2" in late.result()


def test_a_claim_of_a_process_that_died_is_taken_away(
    remote: Tracking, model_of: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alias_module, "_PATIENCE_S", 0.3)
    name = model_of((0.9, 0.2))
    remote.client.set_registered_model_tag(name, "flyball.alias_claim.dead", "claimed")
    assert promote(remote, name, 1).version == 1


def _claims(tracking: Tracking, name: str) -> set[str]:
    tags = tracking.client.get_registered_model(name).tags
    return {tag for tag in tags if tag.startswith("flyball.alias_claim.")}


def test_names_that_do_not_exist_are_told(tracking: Tracking, model_of: Versions) -> None:
    name = model_of((0.9, 0.2))
    with pytest.raises(UnknownName, match="version of"):
        promote(tracking, name, 7)
    with pytest.raises(UnknownName, match="registered model"):
        promote(tracking, "nobody", 1)
    with pytest.raises(UnknownName, match="registered model"):
        roll_back(tracking, "nobody")
    for alias in ("latest", "budget-0", "budget-101", "budget-07", "budget-"):
        with pytest.raises(InvalidSetting, match=f"'{alias}' came"):
            promote(tracking, name, 1, alias)
    assert checked_alias("budget-100") == "budget-100"


def test_a_front_is_registered_once_with_its_figures_and_aliases(
    tracking: Tracking,
    governor: Governor,
    governor_folder: Path,
    other_controller: NetworkController,
    images: NDArray[np.float32],
    tmp_path: Path,
) -> None:
    save_controller(other_controller, tmp_path / CONTROLLER_FOLDER, onnx=False)
    run = tracking.start_run("front", key="front")
    folders = (governor_folder / CONTROLLER_FOLDER, tmp_path / CONTROLLER_FOLDER)
    cheap, dear = (
        FrontEntry(
            key, run.run_id, governor_folder / PATH_FOLDER, folder, figures(*achieved), {"k": key}
        )
        for key, folder, achieved in (
            ("cheap", folders[0], (0.9, 0.2, 0.03)),
            ("dear", folders[1], (0.95, 0.5, -0.01)),
        )
    )
    name = "flyball-front"
    aliases = {"champion": "cheap", "eco": "cheap", "budget-30": "cheap", "peak": "dear"}
    found = register_front(tracking, (cheap, dear), name, aliases)
    assert found.aliases == {"champion": 1, "eco": 1, "budget-30": 1, "peak": 2}
    assert found.refused == {}
    newest, first = list_versions(tracking, name)
    assert first.aliases == ("budget-30", "champion", "eco")
    assert (newest.aliases, newest.figure("val_net")) == (("peak",), 0.5)
    assert newest.figures["val_accuracy_low"] == "0.94"
    assert found.versions["dear"].uri == f"models:/{name}/2"

    # The same front again changes nothing; a dominated one takes no alias away.
    again = register_front(tracking, (cheap, dear), name, aliases)
    assert (again.aliases, again.refused) == (found.aliases, {})
    assert not any(version.is_new for version in again.versions.values())
    assert len(alias_history(tracking, name)) == 4
    later = register_front(tracking, (cheap, dear), name, {"champion": "dear", "eco": "dear"})
    assert later.aliases == {"eco": 2}
    assert "1.00 points more accurate" in later.refused["champion"]
    with pytest.raises(UnknownName, match="point for 'eco'"):
        register_front(tracking, (cheap,), name, {"eco": "nobody"})


def test_the_verb_lists_promotes_refuses_and_rolls_back(
    tracking: Tracking,
    model_of: Versions,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = model_of((0.9, 0.2), (0.92, 0.2), ())
    assert tracking.address.database is not None
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    add_models_arguments(parser)
    settings = [f"storage.root={tracking.address.database.parent}", f"tracking.model={name}"]

    def told(*texts: str) -> str:
        options = parser.parse_args(texts, argparse.Namespace(preset="digits", settings=settings))
        assert run_models(options) == 0
        return capsys.readouterr().out

    assert told("--promote", "1") == f"champion of {name} is now version 1.\n"
    assert "is now version 2, before it version 1." in told("--promote", "2")
    assert "eco of" in told("--promote", "1", "--alias", "eco")
    lines = told().splitlines()
    assert lines[0] == f"{name}: 3 versions"
    assert "92.0% [91.0, 93.0]" in lines[3]
    assert lines[3].endswith("champion")
    assert "0.200 [0.190, 0.210]" in lines[4]
    assert lines[4].endswith("eco")
    with pytest.raises(InvalidSetting, match=r"2\.00 points less accurate"):
        told("--promote", "1")
    back = json.loads(told("--roll-back", "--json"))
    assert (back["alias"], back["version"], back["before"]) == ("champion", 1, 2)
    listed = json.loads(told("--json"))
    assert [version["aliases"] for version in listed] == [[], [], ["champion", "eco"]]
    with pytest.raises(InvalidSetting, match="--promote or --roll-back"):
        told("--alias", "eco")
