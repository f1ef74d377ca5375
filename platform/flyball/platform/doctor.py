"""`flyball doctor`: looks over this machine, a running cluster or a cluster file; changes nothing.

What is right is said too, so that a line can be copied into a question.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flyball.datapaths.errors import BadInput

if TYPE_CHECKING:
    from flyball.platform.job import Job

__all__ = ["Check", "add_doctor_arguments", "look_over", "run_doctor"]

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what was looked at.
        state: "ok"; "note" where work goes on, only slower; "problem" where it would fail.
        said: what was found.
        todo: what to do about it; "" where nothing.
    """

    name: str
    state: Literal["ok", "note", "problem"]
    said: str
    todo: str = ""

    @property
    def line(self) -> str:
        """For people."""
        return f"{self.state:<8} {self.name:<9} {self.said}" + (self.todo and f" {self.todo}")


def add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes, besides --json."""
    parser.add_argument(
        "cluster_file",
        nargs="?",
        type=Path,
        metavar="CLUSTER.yaml",
        help="for `ray up`, or a RayCluster or RayJob manifest: is looked over too",
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="as jobs are given it, such as storage.root=/mnt/shared/runs; may be repeated",
    )


def run_doctor(options: argparse.Namespace) -> int:
    """Prints one line for each check; the exit code is 1 if there is a problem.

    Raises:
        BadInput: a setting is wrong.
    """
    checks: list[Check] = []
    for check in look_over(options.settings, options.cluster_file):
        checks.append(check)
        if not options.json:
            print(check.line, flush=True)
    has_problem = any(check.state == "problem" for check in checks)
    if options.json:
        print(json.dumps({"ok": not has_problem, "checks": [asdict(check) for check in checks]}))
    return 1 if has_problem else 0


def look_over(settings: Iterable[str] = (), cluster_file: Path | None = None) -> Iterator[Check]:
    """All checks, as they are done.

    Args:
        settings: FIELD=VALUE, as jobs are given them.
        cluster_file: to look over too.

    Raises:
        BadInput: a setting is wrong.
    """
    # Torch, Ray and MLflow take seconds to import, which `--help` need not wait for.
    from flyball.platform.overrides import with_overrides
    from flyball.platform.presets import preset

    job = with_overrides(preset("digits"), list(settings))
    yield _versions()
    yield _compiler()
    yield _gpus()
    yield _told("storage", lambda: _storage(job))
    yield _told("tracking", lambda: _tracking(job))
    yield from _ray(job)
    if cluster_file is not None:
        yield from _cluster_file(cluster_file)


def _told(name: str, look: Callable[[], str]) -> Check:
    """What a look found, or the complaint that it raised, which says what to do."""
    try:
        return Check(name, "ok", look())
    except BadInput as error:
        return Check(name, "problem", str(error))


def _versions() -> Check:
    from flyball.platform.nodes import code_fingerprint, versions_here

    found = versions_here()
    said = ", ".join(f"{name} {at}" for name, at in found.items()) + f"; code {code_fingerprint()}"
    if missing := [name for name, at in found.items() if at == "missing"]:
        todo = f"Install {', '.join(missing)}: `make environment`."
        return Check("versions", "problem", said, todo)
    return Check("versions", "ok", said)


def _compiler() -> Check:
    from flyball.kernels import cpu

    can, why = cpu.available()
    if can:
        return Check("kernels", "ok", why)
    todo = "Sparse blocks run with torch, several times slower; apt-get install g++."
    return Check("kernels", "note", why, todo)


def _gpus() -> Check:
    import torch

    from flyball.kernels import gpu

    count = torch.cuda.device_count()
    if not count:
        if NVIDIA_DRIVER.exists():
            todo = "Install a torch built for its driver, or a newer driver."
            return Check(
                "GPUs", "problem", "there is an NVIDIA driver, and torch sees no GPU.", todo
            )
        return Check("GPUs", "ok", "none; everything runs on the CPU")
    names = ", ".join(torch.cuda.get_device_name(place) for place in range(count))
    can, why = gpu.available(torch.device("cuda", 0))
    if can:
        return Check("GPUs", "ok", f"{names}; {why}")
    return Check("GPUs", "note", f"{names}; {why}.", "Dense operators run instead.")


def _storage(job: "Job") -> str:
    from flyball.platform.run_folder import check_storage

    root = Path(job.storage.root).expanduser().absolute()
    check_storage(root, least_free_mb=job.storage.least_free_mb)
    standing = next(folder for folder in (root, *root.parents) if folder.exists())
    return f"{root} can be written, {shutil.disk_usage(standing).free / 1e9:,.0f} GB free"


def _tracking(job: "Job") -> str:
    from flyball.platform.tracking import check_tracking
    from flyball.platform.tracking.address import resolve_address

    root = Path(job.storage.root)
    check_tracking(job.tracking.uri, root)
    return f"{resolve_address(job.tracking.uri, root).shown} answers, or will be made"


def _ray(job: "Job") -> Iterator[Check]:
    from flyball.platform.cluster import check_ray_address, is_joined, ray_session
    from flyball.platform.nodes import find_skew, look_at_nodes

    root = Path(job.storage.root)
    try:
        address = check_ray_address(job.compute.ray_address)
        if not is_joined(address):
            yield Check("Ray", "ok", "no cluster is named; Ray is started here when a job needs it")
            return
        with ray_session(address):
            states = look_at_nodes(root)
    except BadInput as error:
        yield Check("Ray", "problem", str(error))
        return
    cpus, gpus = sum(state.cpus for state in states), sum(state.gpus for state in states)
    yield Check("Ray", "ok", f"{address}: {len(states)} nodes, {cpus:g} CPUs, {gpus:g} GPUs")
    if skew := find_skew(states):
        todo = "`ray up cluster.yaml` without --no-restart brings all nodes to one state."
        yield Check("nodes", "problem", " ".join(skew), todo)
    else:
        yield Check("nodes", "ok", "all have this code and these versions")
    if blind := [state.address for state in states if not state.sees_storage]:
        said = f"{', '.join(blind)} cannot see {root.absolute()}."
        todo = "Name a folder that all nodes share with --set storage.root=SHARED_FOLDER."
        yield Check("shared", "problem", said, todo)
    else:
        yield Check("shared", "ok", f"every node sees {root.absolute()}")


def _cluster_file(path: Path) -> Iterator[Check]:
    from flyball.platform.clusters_check import check_cluster_file, read_cluster_file
    from flyball.platform.reach import check_reach

    try:
        findings = check_cluster_file(path)
    except BadInput as error:
        yield Check("cluster", "problem", str(error))
        return
    for finding in findings:
        yield Check("cluster", "problem", f"{path}: {finding}.", "Correct the file.")
    if not findings:
        yield Check("cluster", "ok", f"{path}: nothing is wrong with the file")
        for problem in (found := check_reach(read_cluster_file(path))).problems:
            yield Check("reach", "problem", problem)
        if found.reached:
            yield Check("reach", "ok", f"the key opens {', '.join(found.reached)}")
