"""A registered governor answers as it did in training, wherever MLflow runs, without pickles."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray

from flyball.controllers.export import save_controller
from flyball.controllers.protocol import NetworkController
from flyball.datapaths.errors import (
    CorruptArtifact,
    ForeignArtifact,
    InvalidSetting,
    UnknownName,
)
from flyball.datapaths.frozen import FrozenDataPath
from flyball.platform.governor import CONTROLLER_FOLDER, PATH_FOLDER, Governor, Predictions
from flyball.platform.tracking import (
    RegisteredVersion,
    RunHandle,
    Tracking,
    list_versions,
    load_governor,
    register_governor,
)
from flyball.platform.tracking.serving import serve_command, serve_environment

ROOT = Path(__file__).parents[2]
MODEL = "flyball-test"

# Runs where Flyball is not installed: the source roots are taken off the path first.
ELSEWHERE = """
import json, sys
root, images = sys.argv[1], sys.argv[2]
sys.path[:] = [p for p in sys.path if p and not p.startswith(root) or "site-packages" in p]
import importlib.util
assert importlib.util.find_spec("flyball") is None, "Flyball is still importable"
import mlflow, numpy
model = mlflow.pyfunc.load_model("models:/flyball-test@champion")
x = numpy.load(images)
answers = [model.predict(x), model.predict(x, params={"budget": 0.6})]
kept = ("ray", "gymnasium", "torchvision", "sklearn", "flyball.envs", "flyball.platform.tracking")
print(json.dumps({
    "answers": [answer.to_dict("list") for answer in answers],
    "imported": [name for name in kept if name in sys.modules],
    "sources": sorted({m.__file__ for n, m in sys.modules.items()
                       if n.startswith("flyball.") and getattr(m, "__file__", None)}),
}))
"""


@pytest.fixture(scope="module")
def run(tracking: Tracking) -> RunHandle:
    return tracking.start_run("governor", key="registry")


@pytest.fixture(scope="module")
def registered(tracking: Tracking, run: RunHandle, governor_folder: Path) -> RegisteredVersion:
    return register_governor(
        tracking,
        run,
        governor_folder / PATH_FOLDER,
        governor_folder / CONTROLLER_FOLDER,
        name=MODEL,
        alias="champion",
        tags={"flyball.preset": "test"},
        figures={"accuracy": 0.9125, "throttle_ratio": 0.4},
    )


@pytest.fixture(scope="module")
def model_folder(tracking: Tracking, registered: RegisteredVersion) -> Path:
    uri = tracking.client.get_model_version_download_uri(MODEL, str(registered.version))
    return Path(uri.removeprefix("file://"))


@pytest.fixture(scope="module")
def starting(
    tracking: Tracking, registered: RegisteredVersion
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`mlflow models serve` on a free port of loopback, killed afterwards, whatever happens.

    It takes a while to come up: a test that has something else to do meanwhile asks for it early.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        serve_command(tracking, MODEL, "champion", port=port),
        env=serve_environment(tracking) | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def server(starting: tuple[str, subprocess.Popen[bytes]]) -> str:
    """The address of that server, once it is up."""
    url, process = starting
    deadline = time.monotonic() + 240
    while not _is_up(url):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the server did not come up"
        time.sleep(0.2)
    return url


@pytest.fixture
def other_folder(governor: Governor, other_controller: NetworkController, tmp_path: Path) -> Path:
    """The same data path under another controller."""
    governor.path.save(tmp_path / "other" / PATH_FOLDER)
    save_controller(other_controller, tmp_path / "other" / CONTROLLER_FOLDER, onnx=False)
    return tmp_path / "other"


def _register(
    tracking: Tracking, run: RunHandle, folder: Path, name: str, alias: Any = "champion"
) -> RegisteredVersion:
    return register_governor(
        tracking, run, folder / PATH_FOLDER, folder / CONTROLLER_FOLDER, name=name, alias=alias
    )


def _assert_same(rows: dict[str, list[Any]], said: Predictions) -> None:
    """Bit for bit: JSON carries a float32 as the float64 that equals it."""
    for name, column in said.columns().items():
        np.testing.assert_array_equal(np.asarray(rows[name], np.asarray(column).dtype), column)


def test_a_version_says_what_it_is_and_what_it_achieves(
    tracking: Tracking, run: RunHandle, registered: RegisteredVersion
) -> None:
    assert (registered.version, registered.is_new) == (1, True)
    assert registered.uri == "models:/flyball-test@champion"
    version = tracking.client.get_model_version_by_alias(MODEL, "champion")
    assert (int(version.version), version.run_id, version.status) == (1, run.run_id, "READY")
    assert version.tags["flyball.preset"] == "test"
    assert "accuracy: 0.9125" in str(version.description)
    assert "3 classes, 3 arms" in str(version.description)
    (listed,) = list_versions(tracking, MODEL)
    assert listed.figures == {"accuracy": "0.9125", "throttle_ratio": "0.4"}
    assert (listed.aliases, listed.run_id) == (("champion",), run.run_id)
    assert listed.fingerprint == registered.fingerprint
    outputs = tracking.client.get_run(run.run_id).outputs
    assert outputs is not None
    (made,) = (tracking.client.get_logged_model(m.model_id) for m in outputs.model_outputs)
    assert (made.artifact_location, made.status) == (version.source, "READY")


def test_nothing_of_a_version_is_a_pickle(model_folder: Path) -> None:
    files = [file for file in model_folder.rglob("*") if file.is_file()]
    assert {"path.safetensors", "path.json", "controller.pt2", "controller.json"} <= {
        file.name for file in files
    }
    assert [f for f in files if f.suffix in {".pkl", ".pickle", ".pt", ".pth", ".pyc"}] == []
    openings = {file.read_bytes()[:2] for file in files}
    assert b"\x80\x04" not in openings
    assert b"\x80\x05" not in openings


def test_a_version_carries_the_code_that_serves_and_no_more(model_folder: Path) -> None:
    code = model_folder / "code" / "flyball"
    assert sorted(layer.name for layer in code.iterdir()) == [
        "controllers",
        "datapaths",
        "kernels",
        "platform",
    ]
    assert sorted(file.name for file in (code / "platform").iterdir()) == [
        "__init__.py",
        "governor.py",
    ]
    assert not (code / "controllers" / "rllib").exists()
    assert (code / "platform" / "governor.py").read_text() == (
        ROOT / "platform" / "flyball" / "platform" / "governor.py"
    ).read_text()


def test_a_version_names_its_requirements_with_their_versions(model_folder: Path) -> None:
    lines = (model_folder / "requirements.txt").read_text().splitlines()
    names = [line.split("==")[0] for line in lines]
    assert names == ["mlflow", "numpy", "pandas", "safetensors", "torch"]
    assert all(line.split("==")[1][0].isdigit() and "+" not in line for line in lines)


def test_what_is_loaded_by_alias_answers_as_before(
    tracking: Tracking, registered: RegisteredVersion, governor: Governor, images: NDArray[Any]
) -> None:
    loaded = load_governor(tracking, MODEL, registered.alias)
    _assert_same(loaded.predict(images).columns(), governor.predict(images))


@pytest.mark.usefixtures("starting")
def test_it_answers_alike_where_flyball_is_not_installed(
    tracking: Tracking,
    registered: RegisteredVersion,
    governor: Governor,
    images: NDArray[np.float32],
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "images.npy", images)
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(ROOT), str(tmp_path / "images.npy")],
        env=serve_environment(tracking),  # MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["imported"] == []
    assert found["sources"] != []
    assert [s for s in found["sources"] if s.startswith(str(ROOT))] == []
    _assert_same(found["answers"][0], governor.predict(images))
    _assert_same(found["answers"][1], governor.predict(images, budget=0.6))


def test_the_signature_refuses_what_the_data_path_cannot_take(
    model_folder: Path, images: NDArray[np.float32]
) -> None:
    model = mlflow.pyfunc.load_model(str(model_folder))
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    answer = model.predict(images[:3])
    declared = model.metadata.signature.outputs.input_names()
    assert list(answer.columns) == declared
    for refused in (images[:2].astype(np.float64), images[:2, :, :4]):
        with pytest.raises(MlflowException):
            model.predict(refused)
    with pytest.raises(MlflowException, match="budget"):
        model.predict(images[:2], params={"budget": "little"})


def test_the_same_governor_is_not_registered_twice(
    tracking: Tracking, run: RunHandle, governor_folder: Path
) -> None:
    first = _register(tracking, run, governor_folder, "flyball-twice")
    again = _register(tracking, run, governor_folder, "flyball-twice")
    assert (again.version, again.is_new) == (first.version, False)
    assert len(list_versions(tracking, "flyball-twice")) == 1


def test_a_version_is_champion_or_challenger_and_an_alias_has_one_version(
    tracking: Tracking, run: RunHandle, governor_folder: Path, other_folder: Path
) -> None:
    name = "flyball-aliases"
    _register(tracking, run, governor_folder, name, "champion")
    better = _register(tracking, run, other_folder, name, "champion")
    assert better.version == 2
    assert [v.aliases for v in list_versions(tracking, name)] == [("champion",), ()]
    _register(tracking, run, governor_folder, name, "challenger")
    assert [v.aliases for v in list_versions(tracking, name)] == [("champion",), ("challenger",)]
    _register(tracking, run, other_folder, name, "challenger")
    assert [v.aliases for v in list_versions(tracking, name)] == [("challenger",), ()]


def test_a_version_whose_files_are_gone_is_told_and_registered_anew(
    tracking: Tracking, run: RunHandle, governor_folder: Path
) -> None:
    name = "flyball-gone"
    first = _register(tracking, run, governor_folder, name)
    uri = tracking.client.get_model_version_download_uri(name, str(first.version))
    shutil.rmtree(uri.removeprefix("file://"))
    with pytest.raises(CorruptArtifact, match="moved or deleted"):
        load_governor(tracking, name, "champion")
    again = _register(tracking, run, governor_folder, name)
    assert (again.version, again.is_new) == (2, True)
    assert load_governor(tracking, name, "champion").path.arms == (0.25, 0.5, 1.0)


def test_two_that_do_not_belong_together_are_not_registered(
    tracking: Tracking,
    run: RunHandle,
    governor_folder: Path,
    other_path: FrozenDataPath,
    tmp_path: Path,
) -> None:
    other_path.save(tmp_path / "path")
    with pytest.raises(ForeignArtifact):
        register_governor(
            tracking,
            run,
            tmp_path / "path",
            governor_folder / CONTROLLER_FOLDER,
            name="flyball-foreign",
            alias="champion",
        )
    with pytest.raises(CorruptArtifact, match=r"controller\.pt2 does not exist"):
        register_governor(
            tracking, run, tmp_path / "path", tmp_path, name="flyball-foreign", alias="champion"
        )
    assert list_versions(tracking, "flyball-foreign") == ()


def test_names_and_aliases_that_do_not_exist_are_told_with_the_nearest(
    tracking: Tracking, run: RunHandle, registered: RegisteredVersion, governor_folder: Path
) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'flyball-test'"):
        load_governor(tracking, "flyball-tset")
    with pytest.raises(UnknownName, match="Did you mean 'champion'"):
        load_governor(tracking, MODEL, "champions")
    with pytest.raises(UnknownName, match="alias"):
        serve_command(tracking, MODEL, "nobody", port=1)
    with pytest.raises(InvalidSetting, match="'latest'"):
        _register(tracking, run, governor_folder, MODEL, "latest")
    with pytest.raises(InvalidSetting, match="name of a registered model"):
        _register(tracking, run, governor_folder, "a/b'")


def test_registering_touches_no_global_setting_of_mlflow(
    tracking: Tracking, run: RunHandle, registered: RegisteredVersion, other_folder: Path
) -> None:
    before = (mlflow.get_tracking_uri(), mlflow.get_registry_uri(), dict(os.environ))
    _register(tracking, run, other_folder, "flyball-globals")
    load_governor(tracking, "flyball-globals")
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri(), dict(os.environ)) == before
    assert mlflow.active_run() is None


def test_it_answers_over_http(server: str, governor: Governor, images: NDArray[np.float32]) -> None:
    rows = _post(server, {"inputs": images[:5].tolist()})["predictions"]
    assert len(rows) == 5
    _assert_same({key: [row[key] for row in rows] for key in rows[0]}, governor.predict(images[:5]))
    request = {"inputs": images.tolist(), "params": {"budget": 0.5}}
    rows = _post(server, request)["predictions"]
    _assert_same(
        {key: [row[key] for row in rows] for key in rows[0]}, governor.predict(images, 0.5)
    )


def test_bad_requests_are_refused_over_http(server: str) -> None:
    for inputs in ([[[[2.0] * 8] * 8]], [[[[0.5] * 7] * 8]]):
        with pytest.raises(urllib.error.HTTPError) as refused:
            _post(server, {"inputs": inputs})
        with refused.value as response:
            assert response.code == 400
            assert b"[0, 1]" in response.read() or inputs[0][0][0][0] == 0.5


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ping", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{url}/invocations",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)
