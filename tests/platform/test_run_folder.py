"""The run folder: proved writable and roomy before work, without a trace, and locked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flyball.datapaths.errors import StorageError
from flyball.datapaths.files import write_atomically
from flyball.platform.run_folder import RunFolder, check_storage


def test_checking_leaves_no_trace(tmp_path: Path) -> None:
    check_storage(tmp_path / "new" / "runs", least_free_mb=1)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(StorageError, match=r"below .*/runs, a file.*storage\.root=FOLDER"):
        check_storage(tmp_path / "runs" / "deeper", least_free_mb=1)
    assert (tmp_path / "runs").read_text() == "mine"


@pytest.mark.parametrize("root", ["s3://bucket/runs", "gs://bucket", "http://host/runs"])
def test_an_address_is_no_folder(root: str) -> None:
    with pytest.raises(StorageError, match=r"is an address\. Mount .* storage\.root=FOLDER"):
        check_storage(Path(root), least_free_mb=1)


@pytest.mark.skipif(not os.access("/proc/sys", os.R_OK), reason="needs a read-only file system")
def test_a_read_only_folder_is_refused_even_for_root() -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        check_storage(Path("/proc/sys/flyball"), least_free_mb=1)


def test_too_little_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"needs 1000000000 MB of free space .* MB are left"):
        check_storage(tmp_path / "runs", least_free_mb=1_000_000_000)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_what_was_written_before_whole(tmp_path: Path) -> None:
    """A real full disk: a file-size limit of the process, which the kernel enforces."""
    file = tmp_path / "table.txt"
    with write_atomically(file) as partial:
        partial.write_text("old")
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from flyball.datapaths.files import write_atomically\n"
        "from flyball.datapaths.errors import StorageError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        f"    with write_atomically(Path({str(file)!r})) as partial:\n"
        "        partial.write_bytes(b'x' * 100_000)\n"
        "except StorageError as error:\n"
        "    sys.exit(str(error))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "Cannot write" in ran.stderr
    assert "Free some space" in ran.stderr
    assert file.read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["table.txt"]


def test_a_file_where_a_folder_should_be_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("mine")
    with (
        pytest.raises(StorageError, match="Cannot write"),
        write_atomically(tmp_path / "runs" / "table.txt") as partial,
    ):
        partial.write_text("new")
    assert (tmp_path / "runs").read_text() == "mine"


def test_an_artifact_that_another_process_writes_is_locked(tmp_path: Path) -> None:
    runs = RunFolder(tmp_path)
    code = (
        "from pathlib import Path; from flyball.platform.run_folder import RunFolder\n"
        f"runs = RunFolder(Path({str(tmp_path)!r}))\n"
        "with runs.locked(runs.path('abc')):\n"
        "    print('held', flush=True); input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(StorageError, match="Another process is writing"),
            runs.locked(runs.path("abc")),
        ):
            pass
        with runs.locked(runs.path("other")):
            pass
        other.communicate("\n", timeout=30)
    with runs.locked(runs.path("abc")):
        pass
