"""Bad input at the command line: a clear error, exit code 2, and nothing written."""

import io
import json
import pickle
import shutil
import socket
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flyball.datapaths.files import read_tensors, write_tensors
from flyball.platform.cli import main

QUICK = [
    "phase1.epochs=1",
    "learn.algorithm=plain",
    "learn.updates=20",
    "evaluation.bootstrap=50",
    "arms=0.5,1",
]


@dataclass
class Shell:
    """Runs `flyball train digits` with its own run folder, cache and standard error."""

    root: Path
    capture: pytest.CaptureFixture[str]

    def train(self, *settings: str, preset: str = "digits") -> tuple[int, str]:
        options = [f"storage.root={self.root / 'runs'}", f"data.cache={self.root / 'cache'}"]
        texts = [part for text in (*options, *QUICK, *settings) for part in ("--set", text)]
        code = main(["train", preset, *texts])
        said = self.capture.readouterr().err.strip().splitlines()
        return code, said[-1] if said else ""

    def written(self) -> dict[str, bytes]:
        return {
            str(file.relative_to(self.root)): file.read_bytes()
            for file in sorted(self.root.rglob("*"))
            if file.is_file()
        }

    def refuses(self, said: str, *settings: str, preset: str = "digits") -> None:
        """The command fails with exit code 2 and these words, and changes no file."""
        before = self.written()
        code, error = self.train(*settings, preset=preset)
        assert (code, said in error) == (2, True), (code, error)
        assert self.written() == before


@pytest.fixture
def shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return Shell(tmp_path, capsys)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("rewards.gamma1=1", "There is no field 'rewards.gamma1'. Did you mean 'reward.gamma1'?"),
        ("arms=0.5,0.25", "Arms increase strictly; arm 1 is 0.25 after 0.5"),
        ("arms=0,0.5", "Every arm is a utilization in (0, 1]; arm 0 is 0.0"),
        ("arms=0.5,1.5", "Every arm is a utilization in (0, 1]; arm 1 is 1.5"),
        ("reward.gamma1=-0.5", "gamma1"),
        ("reward.gamma1=nan", "gamma1"),
        ("reward.gamma2=-1", "gamma2"),
        ("reward.gamma2=nan", "gamma2"),
        ("data.root=/nowhere/images", "data.root"),
        ("path.image_size=16", "The network takes inputs of shape (1, 16, 16)"),
        ("path.components=7", "7 components do not divide 16 outputs"),
        ("storage.least_free_mb=1000000000", "needs 1000000000 MB of free space"),
        ("storage.root=/proc/sys/flyball", "cannot be written"),
        ("compute.ray_address=127.0.0.1:1", "No Ray cluster answers at '127.0.0.1:1'"),
        ("tracking.model=a/b", "The name of a registered model is made of"),
        ("path.gating=independent", "The sandwich rule needs nested gates"),
        ("compute.device=cudafoo", "compute.device is auto, cpu, cuda or cuda:N, not 'cudafoo'"),
        ("compute.device=cuda:99", "CUDA devices"),
        ("compute.device=gpu", "compute.device is auto, cpu, cuda or cuda:N, not 'gpu'"),
    ],
)
def test_a_setting_that_cannot_be(shell: Shell, setting: str, said: str) -> None:
    shell.refuses(said, setting)


def test_an_unknown_preset_and_verb(shell: Shell) -> None:
    shell.refuses("There is no preset 'digit'. Did you mean 'digits'?", preset="digit")
    assert main(["trian", "digits"]) == 2
    assert "There is no verb 'trian'. Did you mean 'train'?" in shell.capture.readouterr().err


def test_a_missing_and_a_corrupt_archive(shell: Shell) -> None:
    archive = shell.root / "photos.tar.gz"
    of_folder = ("data.name=folder", f"data.root={archive}")
    shell.refuses(str(archive), *of_folder)
    shell.refuses("data.root", "data.name=cifar10")
    with tarfile.open(archive, "w:gz") as opened:
        _add(opened, "cat/0.png", _png(8))
        _add(opened, "dog/0.png", _png(8))
    archive.write_bytes(archive.read_bytes()[:-40])
    shell.refuses(archive.name, *of_folder)
    archive.write_text("not an archive")
    shell.refuses(archive.name, *of_folder)


def test_a_class_folder_without_an_image(shell: Shell) -> None:
    photos = _photos(shell.root / "photos")
    (photos / "owl").mkdir()
    shell.refuses("owl", "data.name=folder", f"data.root={photos}")


def test_an_image_that_does_not_decode(shell: Shell) -> None:
    photos = _photos(shell.root / "photos")
    (photos / "cat" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    shell.refuses("3.png", "data.name=folder", f"data.root={photos}")


def test_images_of_another_size(shell: Shell) -> None:
    photos = _photos(shell.root / "photos", size=12)
    said = "The network takes inputs of shape (1, 8, 8) (channels, height, width); those of folder"
    shell.refuses(said, "data.name=folder", f"data.root={photos}")


def test_an_unreachable_tracking_server(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{probe.getsockname()[1]}"
    shell.refuses(uri, f"tracking.uri={uri}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    shell.refuses(uri)


@pytest.mark.parametrize("verb", ["demo", "serve", "report", "models"])
def test_verbs_that_only_read_write_nothing(shell: Shell, verb: str) -> None:
    code = main([verb, "digits", "--set", f"storage.root={shell.root / 'runs'}"])
    assert code == (0 if verb == "models" else 2)
    told = shell.capture.readouterr()
    assert ("0 versions" in told.out) == (verb == "models")
    assert "Run `flyball train digits` first" in told.err or verb == "models"
    assert shell.written() == {}


def test_a_report_takes_no_settings_that_it_would_ignore(shell: Shell) -> None:
    assert main(["report", "digits", "--set", "reward.gamma1=0.9"]) == 2
    assert "reward.gamma1" in shell.capture.readouterr().err


def test_errors_are_json_for_machines(shell: Shell) -> None:
    assert main(["train", "digits", "--json", "--set", "learn.sed=1"]) == 2
    out = json.loads(shell.capture.readouterr().out)
    assert out["error"] == "UnknownName"
    assert "learn.seed" in out["message"]


def test_saved_files_that_cannot_be_used(shell: Shell) -> None:
    """One finished job, whose files are then damaged one way after the other."""
    assert shell.train()[0] == 0
    runs = shell.root / "runs"
    (weights,) = runs.glob("paths/*/path.safetensors")
    (atlas,) = runs.glob("outcomes/*/atlas.safetensors")

    def truncated() -> None:
        weights.write_bytes(weights.read_bytes()[:-100])

    def other_shapes() -> None:
        tensors = read_tensors(weights)
        write_tensors(weights, {n: np.zeros((2, 2), np.float32) for n in tensors})

    def as_pickle() -> None:
        weights.write_bytes(pickle.dumps({"weights": 1}))

    def as_torch_checkpoint() -> None:
        buffer = io.BytesIO()
        torch.save({"weights": torch.zeros(2)}, buffer)
        weights.write_bytes(buffer.getvalue())

    def truncated_atlas() -> None:
        atlas.write_bytes(atlas.read_bytes()[:500])

    def atlas_of_another_path() -> None:
        header = atlas.with_name("atlas.json")
        text = json.loads(header.read_text())
        header.write_text(json.dumps({**text, "path_fingerprint": "0123456789abcdef"}))

    cases: list[tuple[Callable[[], None], Path, str]] = [
        (truncated, weights.parent, "is not a whole safetensors file"),
        (other_shapes, weights.parent, "this network needs"),
        (as_pickle, weights.parent, "is a pickle, and Flyball loads none"),
        (as_torch_checkpoint, weights.parent, "is a pickle, and Flyball loads none"),
        (truncated_atlas, atlas.parent, "must have"),
        (atlas_of_another_path, atlas.parent, "holds the outcomes of data path 0123456789abcdef"),
    ]
    for damage, folder, said in cases:
        kept = shell.root / "kept"
        shutil.copytree(folder, kept)
        damage()
        shell.refuses(said)
        shutil.rmtree(folder)
        shutil.move(kept, folder)
    assert shell.train()[0] == 0


def _photos(folder: Path, *, size: int = 8) -> Path:
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            (folder / name / f"{number}.png").write_bytes(_png(size, seed=number))
    return folder


def _png(size: int, *, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
