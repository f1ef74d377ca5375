"""The outcome atlas: what the data path itself answers, in whole files, in the same bytes."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flyball.datapaths.atlas import OutcomeAtlas
from flyball.datapaths.data import DataConfig, ImageSet, load_images
from flyball.datapaths.errors import (
    CorruptArtifact,
    DataError,
    ForeignArtifact,
    InvalidArms,
    InvalidSetting,
    NotFinite,
    PickleRefused,
)
from flyball.datapaths.frozen import FrozenDataPath, PathSpec
from flyball.datapaths.outcomes import OutcomesConfig, build_atlas
from flyball.datapaths.progress import Progress
from flyball.datapaths.splits import SPLITS
from flyball.datapaths.vgg import ThrottleableVgg, small_vgg

SMALL = OutcomesConfig(shard_size=100)


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_images(DataConfig(name="digits"))


@pytest.fixture(scope="module")
def path() -> FrozenDataPath:
    return frozen(seed=0)


def frozen(seed: int) -> FrozenDataPath:
    config = small_vgg(in_channels=1, image_size=8)
    torch.manual_seed(seed)
    network = ThrottleableVgg(config)
    torch.nn.init.normal_(network.classifier.weight)
    names = tuple("0123456789")
    return FrozenDataPath(network, PathSpec(config, (0.2, 0.6, 1.0), names, (0.3,), (0.4,)))


def test_it_holds_what_the_data_path_answers(
    digits: ImageSet, path: FrozenDataPath, tmp_path: Path
) -> None:
    atlas = build_atlas(path, digits, tmp_path, SMALL)
    assert len(atlas) == sum(len(digits.rows(name)) for name in SPLITS[1:])
    pixels = torch.from_numpy(np.asarray(digits.images[atlas.sample])).float() / 255
    for arm, u in enumerate(path.arms):
        probabilities = torch.softmax(path(pixels, u).output, dim=1)
        assert np.array_equal(atlas.answer[:, arm], probabilities.argmax(dim=1).numpy())
        assert np.array_equal(atlas.confidence[:, arm], probabilities.amax(dim=1).numpy())
    assert np.array_equal(atlas.correct, atlas.answer == atlas.label[:, None])
    assert np.array_equal(atlas.label, digits.labels[atlas.sample])
    assert np.array_equal(atlas.macs, np.broadcast_to(path.arm_macs, atlas.macs.shape))
    assert atlas.context is not None
    assert np.array_equal(atlas.context, path.context(pixels)[0].numpy())
    assert atlas.throttle_ratio()[0].tolist() == [m / path.full_macs for m in path.arm_macs]


def test_it_runs_every_arm_once_on_every_image_and_never_again(
    digits: ImageSet, path: FrozenDataPath, tmp_path: Path
) -> None:
    before = path.forwards
    atlas = build_atlas(path, digits, tmp_path, SMALL)
    assert path.forwards - before == len(atlas) * 3 == atlas.header.forwards
    before = path.forwards
    build_atlas(path, digits, tmp_path, SMALL)
    assert path.forwards == before


def test_path_train_is_asked_only_on_request(
    digits: ImageSet, path: FrozenDataPath, tmp_path: Path
) -> None:
    assert build_atlas(path, digits, tmp_path / "a", SMALL).split_sizes()["path_train"] == 0
    whole = replace(SMALL, include_path_train=True)
    assert len(build_atlas(path, digits, tmp_path / "b", whole)) == len(digits.labels)


def test_an_interrupted_build_goes_on_and_ends_with_the_same_bytes(
    digits: ImageSet, path: FrozenDataPath, tmp_path: Path
) -> None:
    build_atlas(path, digits, tmp_path / "undisturbed", SMALL)

    def interrupt(progress: Progress) -> None:
        if progress.done >= 300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_atlas(path, digits, tmp_path / "resumed", SMALL, report=interrupt)
    before = path.forwards
    atlas = build_atlas(path, digits, tmp_path / "resumed", SMALL)
    assert path.forwards - before == (len(atlas) - 300) * 3
    assert contents(tmp_path / "resumed") == contents(tmp_path / "undisturbed")


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_outcomes import SMALL, build_atlas, frozen, load_images, DataConfig
def report(progress):
    if progress.done >= 500:
        os.kill(os.getpid(), signal.SIGKILL)
digits = load_images(DataConfig(name="digits"))
build_atlas(frozen(seed=0), digits, {folder!r}, SMALL, report=report)
"""


def test_a_build_killed_with_sigkill_resumes_to_the_same_bytes(
    digits: ImageSet, tmp_path: Path
) -> None:
    build_atlas(frozen(seed=0), digits, tmp_path / "undisturbed", SMALL)
    folder = tmp_path / "killed"
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder))
    process = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "atlas.json").exists()
    path = frozen(seed=0)
    atlas = build_atlas(path, digits, folder, SMALL)
    assert path.forwards == (len(atlas) - 500) * 3
    assert contents(folder) == contents(tmp_path / "undisturbed")


def test_a_torn_shard_is_built_again(
    digits: ImageSet, path: FrozenDataPath, tmp_path: Path
) -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_atlas(path, digits, tmp_path, SMALL, report=interrupt)
    shard = tmp_path / "shards" / "000000.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    build_atlas(path, digits, tmp_path, SMALL)
    OutcomeAtlas.open(tmp_path, verify=True)


def test_an_atlas_of_another_data_path_is_refused(
    digits: ImageSet, path: FrozenDataPath, tmp_path: Path
) -> None:
    build_atlas(path, digits, tmp_path, SMALL)
    with pytest.raises(ForeignArtifact, match=f"not of {frozen(seed=1).fingerprint}"):
        OutcomeAtlas.open(tmp_path, path_fingerprint=frozen(seed=1).fingerprint)
    with pytest.raises(ForeignArtifact, match="holds the outcomes of data path"):
        build_atlas(frozen(seed=1), digits, tmp_path, SMALL)


def test_shards_of_another_plan_are_refused(
    digits: ImageSet, path: FrozenDataPath, tmp_path: Path
) -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_atlas(path, digits, tmp_path, SMALL, report=interrupt)
    with pytest.raises(ForeignArtifact, match="unfinished atlas of another"):
        build_atlas(path.with_arms((0.5, 1.0)), digits, tmp_path, SMALL)


@pytest.mark.parametrize("keep", [0, 9, 2_000])
def test_a_truncated_atlas_is_refused(
    digits: ImageSet, path: FrozenDataPath, tmp_path: Path, keep: int
) -> None:
    build_atlas(path, digits, tmp_path, SMALL)
    file = tmp_path / "atlas.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CorruptArtifact, match=rf"must have \d+ bytes, it has {keep}: it was trunc"):
        OutcomeAtlas.open(tmp_path)


def test_an_altered_atlas_is_found_when_verified(
    digits: ImageSet, path: FrozenDataPath, tmp_path: Path
) -> None:
    build_atlas(path, digits, tmp_path, SMALL)
    file = tmp_path / "atlas.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(CorruptArtifact, match="not those its header names"):
        OutcomeAtlas.open(tmp_path, verify=True)


def test_a_pickle_and_a_foreign_header_are_refused(
    digits: ImageSet, path: FrozenDataPath, tmp_path: Path
) -> None:
    build_atlas(path, digits, tmp_path, SMALL)
    header = tmp_path / "atlas.json"
    header.write_text(json.dumps({"format": 99}))
    with pytest.raises(CorruptArtifact, match="not the header of an outcome atlas"):
        OutcomeAtlas.open(tmp_path)
    header.write_text(
        json.dumps({"format": 1, "bytes": (tmp_path / "atlas.safetensors").stat().st_size})
    )
    with pytest.raises(CorruptArtifact, match="lacks a table or a field"):
        OutcomeAtlas.open(tmp_path)
    header.write_bytes(b"\x80\x04.")
    with pytest.raises(PickleRefused, match="Flyball loads none"):
        OutcomeAtlas.open(tmp_path)


def test_a_finished_atlas_of_other_settings_is_refused(
    digits: ImageSet, path: FrozenDataPath, tmp_path: Path
) -> None:
    build_atlas(path, digits, tmp_path, SMALL)
    with pytest.raises(ForeignArtifact, match="holds the atlas"):
        build_atlas(path, digits, tmp_path, OutcomesConfig(cost_model="linear"))
    with pytest.raises(ForeignArtifact, match="holds the atlas"):
        build_atlas(path.with_arms((0.5, 1.0)), digits, tmp_path, SMALL)


def test_a_data_path_that_gives_nan_stops_the_build(digits: ImageSet, tmp_path: Path) -> None:
    broken = frozen(seed=0)
    with torch.no_grad():
        dict(broken.network.named_parameters())["hidden.bias"].fill_(float("nan"))
    with pytest.raises(NotFinite, match=r"at arm 0 \(u = 0\.2\) on image \d+ of digits"):
        build_atlas(broken, digits, tmp_path, SMALL)


def test_images_of_another_size_are_refused_and_nothing_is_written(
    digits: ImageSet, path: FrozenDataPath, tmp_path: Path
) -> None:
    small = replace(digits, images=np.asarray(digits.images)[:, :, :4, :4])
    with pytest.raises(DataError, match=r"\(1, 8, 8\), digits has \(1, 4, 4\)"):
        build_atlas(path, small, tmp_path / "atlas", SMALL)
    assert not (tmp_path / "atlas").exists()


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"at least one sample.*outcomes\.shard_size"):
        OutcomesConfig(shard_size=0)
    with pytest.raises(InvalidSetting, match="'executed' or 'linear', not 'quadratic'"):
        OutcomesConfig(cost_model="quadratic")  # type: ignore[arg-type]


def test_net_cost_adds_controller_and_context_and_pays_the_lowest_arm_once() -> None:
    atlas = OutcomeAtlas.from_arrays(
        (0.5, 1.0), correct=np.eye(2), confidence=np.eye(2), macs=[30, 100], context_macs=30
    )
    assert atlas.throttle_ratio().tolist() == [[0.3, 1.0]] * 2
    assert atlas.net_macs(2, uses_context=True).tolist() == [[32, 132]] * 2
    assert atlas.net_macs(2, uses_context=False).tolist() == [[32, 102]] * 2


def test_the_linear_cost_model_counts_as_the_paper_does(
    digits: ImageSet, path: FrozenDataPath, tmp_path: Path
) -> None:
    low = path.with_arms((0.25, 0.5))
    atlas = build_atlas(low, digits, tmp_path, replace(SMALL, cost_model="linear"))
    # 4 and 8 of 16 components in every T-module; the classifier's 1,280 MACs are never gated
    gated = low.full_macs - 1_280
    assert atlas.macs[0].tolist() == [gated // 4 + 1_280, gated // 2 + 1_280]
    assert atlas.header.full_macs == low.full_macs


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(CorruptArtifact, match=r"'confidence'.*shape \(3, 2\), not \(2, 2\)"):
        OutcomeAtlas.from_arrays(
            (0.5, 1.0), correct=np.eye(2), confidence=np.ones((3, 2)), macs=[1, 2]
        )
    with pytest.raises(InvalidArms):
        OutcomeAtlas.from_arrays((1.0, 0.5), correct=np.eye(2), confidence=np.eye(2), macs=[1, 2])


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
