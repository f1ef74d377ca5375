import hashlib
import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from flyball.controllers import Calibration, NetworkController, load_controller, save_controller
from flyball.controllers.networks import ControllerConfig, build_network
from flyball.datapaths.errors import (
    CorruptArtifact,
    InvalidArms,
    PickleRefused,
    StorageError,
)

CALIBRATION = Calibration((0.25, 0.5, 1.0), (0.3, 0.9), (2.5, -0.125))


def controller_of(kind: str, shape: tuple[int, ...]) -> NetworkController:
    config = ControllerConfig(kind, width=8)  # type: ignore[arg-type]
    network = build_network(config, shape, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in network[-1].parameters():
            parameter.mul_(100.0)
    return NetworkController(
        network,
        (0.25, 0.5, 1.0),
        123,
        "context" if kind == "context_head" else "image",
        shape,
        calibration=CALIBRATION,
        classes=("cat", "dog"),
        path_fingerprint="0123",
        atlas_fingerprint="4567",
    )


def rows_for(controller: NetworkController, count: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(count)
    return rng.random((count, *controller.observation_shape), np.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    controller = controller_of("image_cnn", (1, 8, 8))
    return save_controller(controller, tmp_path_factory.mktemp("controller"))


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("context_head", (5,)), ("image_cnn", (1, 8, 8)), ("image_cnn", (3, 32, 32))],
)
def test_a_round_trip_answers_bit_for_bit_at_every_batch_size(
    kind: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    controller = controller_of(kind, shape)
    loaded = load_controller(save_controller(controller, tmp_path, onnx=False))
    for count in (1, 2, 33):
        rows = rows_for(controller, count)
        assert np.array_equal(loaded.propensities(rows), controller.propensities(rows))
        assert np.array_equal(loaded.choose(rows, 0.4), controller.choose(rows, 0.4))


def test_a_round_trip_keeps_all_that_the_controller_is(saved: Path) -> None:
    loaded, original = load_controller(saved), controller_of("image_cnn", (1, 8, 8))
    for name in ("arms", "macs", "observation", "observation_shape", "calibration", "classes"):
        assert getattr(loaded, name) == getattr(original, name)
    assert (loaded.path_fingerprint, loaded.atlas_fingerprint) == ("0123", "4567")


def test_saving_leaves_the_controller_as_it_was(tmp_path: Path) -> None:
    controller = controller_of("context_head", (5,))
    controller.network.train()
    save_controller(controller, tmp_path, onnx=False)
    assert controller.network.training
    assert all(parameter.requires_grad for parameter in controller.network.parameters())


def test_the_same_controller_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    save_controller(controller_of("image_cnn", (1, 8, 8)), tmp_path)
    for file in saved.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_nothing_but_the_three_files_is_left_and_none_names_a_source_file(saved: Path) -> None:
    assert {f.name for f in saved.iterdir()} == {
        "controller.json",
        "controller.onnx",
        "controller.pt2",
    }
    for file in saved.iterdir():
        assert str(Path(__file__).parents[1]).encode() not in file.read_bytes()


def test_a_loaded_controller_can_be_saved_again(saved: Path, tmp_path: Path) -> None:
    loaded = load_controller(saved)
    again = load_controller(save_controller(loaded, tmp_path, onnx=False))
    rows = rows_for(loaded, 9)
    assert np.array_equal(again.propensities(rows), loaded.propensities(rows))


def test_a_process_without_ray_or_environments_gives_the_same_answers(
    saved: Path, tmp_path: Path
) -> None:
    controller = controller_of("image_cnn", (1, 8, 8))
    rows = rows_for(controller, 17)
    np.save(tmp_path / "rows.npy", rows)
    script = (
        "import sys, numpy as np\n"
        "from flyball.controllers import load_controller\n"
        "controller = load_controller(sys.argv[1])\n"
        "rows = np.load(sys.argv[2] + '/rows.npy')\n"
        "np.save(sys.argv[2] + '/answers.npy', controller.propensities(rows))\n"
        "heavy = ('ray', 'gymnasium', 'mlflow', 'flyball.envs', 'flyball.platform')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(saved), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
    assert np.array_equal(np.load(tmp_path / "answers.npy"), controller.propensities(rows))


def test_the_onnx_file_is_valid_and_computes_the_same_logits(saved: Path) -> None:
    model = onnx.load(saved / "controller.onnx")
    onnx.checker.check_model(model, full_check=True)
    evaluator = ReferenceEvaluator(model)
    controller = controller_of("image_cnn", (1, 8, 8))
    for count in (1, 6):
        rows = rows_for(controller, count)
        (logits,) = evaluator.run(None, {"observations": rows})
        # Sums of at most 72 float32 products in another order.
        expected = controller.logits(rows)
        np.testing.assert_allclose(np.asarray(logits), expected, rtol=1e-4, atol=1e-5)


def test_a_file_that_cannot_be_replaced_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "controller.pt2").mkdir()
    with pytest.raises(StorageError, match=r"Cannot write .*controller\.pt2"):
        save_controller(controller_of("context_head", (5,)), tmp_path, onnx=False)
    assert [file.name for file in tmp_path.iterdir()] == ["controller.pt2"]


def rezip(file: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Rewrites an archive with changed members, and its digest in the header beside it."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    header = json.loads((file.parent / "controller.json").read_text())
    header["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (file.parent / "controller.json").write_text(json.dumps(header))


def member(members: dict[str, bytes], ending: str) -> str:
    return next(name for name in members if name.endswith(ending))


def test_a_rewritten_archive_is_accepted_when_nothing_changed(copy: Path) -> None:
    rezip(copy / "controller.pt2", lambda members: None)
    assert load_controller(copy).arms == (0.25, 0.5, 1.0)


class Trap:
    """Unpickling one creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return open, (str(self.file), "w")


def test_a_pickle_under_the_name_of_a_controller_is_refused_and_not_run(copy: Path) -> None:
    sprung = copy / "sprung"
    (copy / "controller.pt2").write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(PickleRefused, match="is a pickle, and Flyball loads none"):
        load_controller(copy)
    assert not sprung.exists()


def test_a_checkpoint_of_torch_save_under_that_name_is_refused_and_not_run(copy: Path) -> None:
    sprung = copy / "sprung"
    torch.save({"weights": torch.zeros(2), "trap": Trap(sprung)}, copy / "controller.pt2")
    with pytest.raises(PickleRefused, match=r"member data\.pkl is one"):
        load_controller(copy)
    assert not sprung.exists()


def test_a_pickled_header_is_refused(copy: Path) -> None:
    (copy / "controller.json").write_bytes(pickle.dumps({"format": 1}))
    with pytest.raises(PickleRefused):
        load_controller(copy)


def pickled(sprung: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save((Trap(sprung),), buffer)
    return buffer.getvalue()


def test_sample_inputs_which_torch_would_unpickle_are_refused(copy: Path) -> None:
    sprung = copy / "sprung"

    def plant(members: dict[str, bytes]) -> None:
        members[member(members, "sample_inputs/model.pt")] = pickled(sprung)

    rezip(copy / "controller.pt2", plant)
    with pytest.raises(PickleRefused, match="sample_inputs"):
        load_controller(copy)
    assert not sprung.exists()


def test_weights_marked_as_pickles_are_refused(copy: Path) -> None:
    sprung = copy / "sprung"

    def plant(members: dict[str, bytes]) -> None:
        name = member(members, "model_weights_config.json")
        config = json.loads(members[name])
        next(iter(config["config"].values()))["use_pickle"] = True
        members[name] = json.dumps(config).encode()
        members[member(members, "weight_0")] = pickled(sprung)

    rezip(copy / "controller.pt2", plant)
    with pytest.raises(PickleRefused, match=r"model_weights_config\.json asks for one"):
        load_controller(copy)
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["data/constants/opaque_obj_0", "data/constants/model.pt"])
def test_objects_which_torch_would_unpickle_are_refused(copy: Path, name: str) -> None:
    def plant(members: dict[str, bytes]) -> None:
        members[f"controller/{name}"] = b"anything"

    rezip(copy / "controller.pt2", plant)
    with pytest.raises(PickleRefused, match=name):
        load_controller(copy)


def test_native_code_in_the_archive_is_refused(copy: Path) -> None:
    def plant(members: dict[str, bytes]) -> None:
        members["controller/data/aotinductor/model/a.so"] = b"\x7fELF"

    rezip(copy / "controller.pt2", plant)
    with pytest.raises(CorruptArtifact, match=r"holds data/aotinductor/model/a\.so"):
        load_controller(copy)


@pytest.mark.parametrize("key", ["expr_str", "target"])
def test_python_hidden_in_the_graph_is_refused(copy: Path, key: str) -> None:
    code = "__import__('os').mkdir('sprung')"

    def replaced(value: object) -> object:
        if isinstance(value, dict):
            return {k: code if k == key else replaced(v) for k, v in value.items()}
        return [replaced(v) for v in value] if isinstance(value, list) else value

    def plant(members: dict[str, bytes]) -> None:
        name = member(members, "models/model.json")
        members[name] = json.dumps(replaced(json.loads(members[name]))).encode()

    rezip(copy / "controller.pt2", plant)
    with pytest.raises(CorruptArtifact, match="which no controller needs"):
        load_controller(copy)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_network_is_refused(copy: Path, share: float) -> None:
    file = copy / "controller.pt2"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CorruptArtifact, match="no whole archive"):
        load_controller(copy)


def test_a_flipped_bit_is_found(copy: Path) -> None:
    file = copy / "controller.pt2"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(CorruptArtifact):
        load_controller(copy)


def test_a_network_that_the_header_does_not_describe_is_refused(copy: Path) -> None:
    header = json.loads((copy / "controller.json").read_text())
    (copy / "controller.json").write_text(json.dumps(header | {"sha256": "0" * 64}))
    with pytest.raises(CorruptArtifact, match="one of them was replaced"):
        load_controller(copy)


@pytest.mark.parametrize("name", ["controller.pt2", "controller.json"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(CorruptArtifact, match=f"{name} does not exist"):
        load_controller(copy)


@pytest.mark.parametrize(
    "change", [{"format": 99}, {"macs": "many"}, {"classes": 3}, {"calibration": {"prices": [1]}}]
)
def test_a_header_with_other_fields_is_refused(copy: Path, change: dict[str, object]) -> None:
    header = json.loads((copy / "controller.json").read_text())
    (copy / "controller.json").write_text(json.dumps(header | change))
    with pytest.raises(CorruptArtifact, match=r"controller\.json"):
        load_controller(copy)


def test_arms_out_of_order_in_a_header_are_refused_as_such(copy: Path) -> None:
    header = json.loads((copy / "controller.json").read_text())
    (copy / "controller.json").write_text(json.dumps(header | {"arms": [1.0, 0.5, 0.25]}))
    with pytest.raises(InvalidArms, match="increase strictly"):
        load_controller(copy)
