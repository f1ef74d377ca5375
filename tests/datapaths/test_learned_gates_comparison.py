"""The comparison of gates: every method once, a shared data path, and a killed run that goes on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from flyball.datapaths.errors import (
    CorruptArtifact,
    DataError,
    ForeignArtifact,
    InvalidSetting,
    UnknownName,
)
from flyball.datapaths.learned_gates import GateConfig, LearnedGate
from flyball.datapaths.learned_gates.comparison import Labelled, compare_gates
from flyball.datapaths.learned_gates.comparison_config import (
    METHODS,
    ComparisonConfig,
    short_comparison,
)
from flyball.datapaths.learned_gates.comparison_result import Comparison, read_comparison
from flyball.datapaths.network import Gating, ThrottleableNetwork
from flyball.datapaths.phase1 import Phase1Config
from flyball.datapaths.progress import Progress
from flyball.datapaths.vgg import ThrottleableVgg, small_vgg

CONFIG = short_comparison(
    phase1_epochs=2,
    gate_epochs=1,
    train_images=300,
    test_images=100,
    utilizations=(0.25, 1.0),
    draws=1,
)


def make(gating: Gating) -> ThrottleableNetwork:
    return ThrottleableVgg(
        small_vgg(
            stages=((8,), (16,)),
            hidden=16,
            in_channels=1,
            image_size=8,
            components=4,
            gating=gating,
        )
    )


def digits() -> tuple[Labelled, Labelled]:
    loaded = load_digits()
    images = (loaded.images * 15).astype(np.uint8)[:, None]
    labels = loaded.target.astype(np.int64)
    return Labelled(images[:1200], labels[:1200]), Labelled(images[1200:], labels[1200:])


def compared(folder: Path, config: ComparisonConfig = CONFIG, **more: Any) -> Comparison:
    return compare_gates(make, *digits(), config, folder=folder, **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return compared(folder), folder


def test_every_method_has_a_row_for_every_utilization(whole: tuple[Comparison, Path]) -> None:
    rows = whole[0].rows()
    assert [(row.method, row.u) for row in rows] == [(m, u) for m in METHODS for u in (0.25, 1.0)]
    assert all(0 <= row.accuracy <= 1 and 0 < row.complexity <= 1 for row in rows)
    static = [row for row in rows if row.method in ("nested", "independent")]
    assert [row.complexity for row in static] == [0.25, 1.0, 0.25, 1.0]
    assert all(row.net_share == row.mac_share for row in static)
    assert all(row.net_share > row.mac_share for row in rows if row not in static)


def test_what_was_trained_lies_beside_the_result(whole: tuple[Comparison, Path]) -> None:
    for method in ("reinforce", "concrete", "contextual", "contextual_fine"):
        gate = LearnedGate.load(whole[1] / method)
        assert gate.spec.shape.kind == ("blind" if len(method) < 10 else "contextual")
    assert (whole[1] / "contextual_fine" / "path.safetensors").exists()


def test_a_finished_comparison_is_read_and_not_run_again(whole: tuple[Comparison, Path]) -> None:
    heard: list[Progress] = []
    assert compared(whole[1], report=heard.append) == whole[0]
    assert {progress.stage for progress in heard} == {"compare"}
    assert read_comparison(whole[1]) == whole[0]


def test_a_killed_comparison_goes_on_to_the_same_rows(
    whole: tuple[Comparison, Path], tmp_path: Path
) -> None:
    def kill(progress: Progress) -> None:
        if progress.note.startswith("concrete"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path, report=kill)
    heard: list[str] = []
    resumed = compared(tmp_path, report=lambda p: heard.append(p.note.split(":")[0]))
    assert resumed.rows() == whole[0].rows()
    assert "phase1" not in heard  # the data paths are there already
    assert heard.count("reinforce") == 1  # the report of its result alone


def test_another_comparison_is_refused(whole: tuple[Comparison, Path]) -> None:
    other = replace(CONFIG, phase1=replace(CONFIG.phase1, epochs=3))
    with pytest.raises(ForeignArtifact, match="another comparison"):
        compared(whole[1], other)


def test_a_comparison_that_was_killed_in_its_first_method_takes_no_other_settings(
    tmp_path: Path,
) -> None:
    def kill(progress: Progress) -> None:
        if progress.stage == "gates":
            raise KeyboardInterrupt

    learned = replace(CONFIG, methods=("concrete",))
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path, learned, report=kill)
    assert (tmp_path / "phase1_independent" / "path.safetensors").exists()
    other = replace(learned, phase1=replace(CONFIG.phase1, epochs=1))
    with pytest.raises(ForeignArtifact, match="another comparison"):
        compared(tmp_path, other)
    (tmp_path / "comparison.json").unlink()
    with pytest.raises(ForeignArtifact, match="a data path of an unknown comparison"):
        compared(tmp_path, other)


@pytest.mark.parametrize("part", ["train", "test"])
def test_other_pixels_are_another_comparison(
    part: str, whole: tuple[Comparison, Path], tmp_path: Path
) -> None:
    given = dict(zip(("train", "test"), digits(), strict=True))
    given[part] = given[part]._replace(images=255 - given[part].images)
    with pytest.raises(ForeignArtifact, match="another comparison"):
        compare_gates(make, given["train"], given["test"], CONFIG, folder=whole[1])


def test_batch_norms_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    def make_with_batch_norm(gating: Gating) -> ThrottleableNetwork:
        return ThrottleableVgg(replace(make(gating).config, norm="batch"))

    for methods in (METHODS, ("nested",), ("independent",)):
        heard: list[Progress] = []
        with pytest.raises(InvalidSetting, match=r"path\.norm=group"):
            compare_gates(
                make_with_batch_norm,
                *digits(),
                replace(CONFIG, methods=methods),
                folder=tmp_path,
                report=heard.append,
            )
        assert heard == []
    assert list(tmp_path.iterdir()) == []


def test_methods_can_be_added_to_a_comparison(
    whole: tuple[Comparison, Path], tmp_path: Path
) -> None:
    compared(tmp_path, replace(CONFIG, methods=("nested",)))
    both = compared(tmp_path, replace(CONFIG, methods=("independent", "nested")))
    assert [result.method for result in both.results] == ["independent", "nested"]
    assert both.results[0].curve == whole[0].results[1].curve


def test_a_result_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text('{"format": 1, "plan": "3"}')
    with pytest.raises(CorruptArtifact, match="not a comparison"):
        compared(tmp_path)
    (tmp_path / "comparison.json").write_text("[1]")
    with pytest.raises(CorruptArtifact, match="not a comparison"):
        compared(tmp_path)


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    train, test = digits()
    short = Labelled(train.images, train.labels[:-1])
    with pytest.raises(DataError, match="1200 images and 1199 labels"):
        compare_gates(make, short, test, CONFIG, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"methods": ()}, "at least one"),
        ({"methods": ("nested", "nested")}, "once each"),
        ({"phase1": Phase1Config(schedule="sandwich")}, r"phase1\.schedule=uniform"),
        ({"utilizations": (0.5, 1.5)}, r"number in \[0, 1\]"),
        ({"utilizations": ()}, "at least one"),
        ({"draws": 0}, "draws is at least 1"),
        ({"threads": 0}, "threads is at least 1"),
        ({"concrete": GateConfig()}, r"concrete\.estimator=concrete"),
        ({"contextual_fine": GateConfig(gate="contextual")}, r"contextual_fine\.joint=True"),
    ],
)
def test_settings_that_cannot_be_compared_are_refused(changes: Any, match: str) -> None:
    with pytest.raises(InvalidSetting, match=match):
        ComparisonConfig(**changes)


def test_an_unknown_method_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match="'contextual_fine'"):
        ComparisonConfig(methods=("contextual+fine",))  # type: ignore[arg-type]
