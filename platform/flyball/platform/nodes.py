"""Whether every node of a running Ray cluster has this code, these versions and this storage."""

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import os
import platform
import secrets
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flyball.datapaths.errors import CodeSkew, StorageError

__all__ = [
    "NodeState",
    "check_code",
    "check_nodes",
    "code_fingerprint",
    "find_skew",
    "look_at_nodes",
    "source_fingerprint",
    "versions_here",
]

PACKAGES = ("torch", "ray", "mlflow")
SOURCE_SUFFIXES = frozenset({".py", ".cpp", ".h"})
_HEAD_RESOURCE = "node:__internal_head__"
_PATIENCE_S = 60.0
_FIX = (
    "Bring the nodes to one state with `ray up cluster.yaml` (without --no-restart, which updates "
    "the head alone), or ship this folder to all of them with `ray job submit --working-dir . -- "
    "python train_controller.py ...`."
)


@dataclass(frozen=True)
class NodeState:
    """What one node answered.

    Attributes:
        node: Ray's id of it.
        address: its IP address.
        is_head: True for the head.
        sources: fingerprint of the flyball sources that its workers import; "" without an answer.
        versions: of Python and of what results depend on, by name.
        cpus, gpus: what Ray may use there.
        free_mb: free space at the storage root, in 10^6 bytes; 0 where it sees none.
        sees_storage: True if it reads the file that this process wrote there.
        trouble: why it could not answer, or "".
    """

    node: str
    address: str
    is_head: bool
    sources: str
    versions: dict[str, str]
    cpus: float
    gpus: float
    free_mb: int
    sees_storage: bool
    trouble: str = ""


def source_fingerprint() -> str:
    """SHA-256, 16 hex digits, of the flyball sources that this process imports.

    A layer may lie in several places: one that is imported stays where it came from, though a
    model that was loaded since has put its own copy first on the path.
    """
    total = hashlib.sha256()
    roots = [Path(root) for root in importlib.import_module("flyball").__path__]
    names = {file.parent.name for root in roots for file in root.glob("*/__init__.py")}
    for name in sorted(names):
        spec = importlib.util.find_spec(f"flyball.{name}")
        assert spec is not None, name
        assert spec.origin is not None, name
        folder = Path(spec.origin).parent
        for file in sorted(folder.rglob("*")):
            if file.suffix in SOURCE_SUFFIXES and file.is_file():
                total.update(f"{name}/{file.relative_to(folder).as_posix()}\0".encode())
                total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]


def versions_here() -> dict[str, str]:
    """Of Python, without its patch level, torch, Ray and MLflow; without "+cpu" and the like."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def code_fingerprint() -> str:
    """SHA-256, 16 hex digits, of the sources and versions of this process."""
    parts = [source_fingerprint(), *(f"{name}={at}" for name, at in versions_here().items())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def look_at_nodes(storage_root: Path, *, patience_s: float = _PATIENCE_S) -> tuple[NodeState, ...]:
    """Asks every node that is alive, by a task pinned to it; judges nothing.

    Ray must be initialised. The root, and a file in it, are there for the time of the call.

    Args:
        storage_root: where the job writes.
        patience_s: how long a node may take to answer, in seconds.

    Raises:
        StorageError: this process cannot write there.
    """
    root = storage_root.expanduser().absolute()
    proof = root / f".seen-by-every-node-{secrets.token_hex(8)}"
    token = secrets.token_hex(16)
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        proof.write_text(token, encoding="ascii")
    except OSError as error:
        raise StorageError(
            f"The run folder {root} cannot be written: {error.strerror or error}. "
            "Name another folder with --set storage.root=FOLDER."
        ) from error
    try:
        alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        asked = [_ask(node["NodeID"], proof, token) for node in alive]
        ray.wait(asked, num_returns=len(asked), timeout=patience_s)
        states = [_state(node, answer) for node, answer in zip(alive, asked, strict=True)]
    finally:
        proof.unlink(missing_ok=True)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
    return tuple(sorted(states, key=lambda state: (not state.is_head, state.address, state.node)))


def find_skew(states: Sequence[NodeState]) -> list[str]:
    """One line for each node that cannot work with this process: what differs, and the fix."""
    return [line for state in states if (line := _fault(state))]


def check_nodes(storage_root: Path) -> tuple[NodeState, ...]:
    """Makes sure that all nodes have this code, these versions and this storage.

    Ray must be initialised. Nodes that join later are asked by `check_code`.

    Args:
        storage_root: where the job writes.

    Returns:
        What every node answered, the head first.

    Raises:
        CodeSkew: a node does not answer, or has other code or versions.
        StorageError: a node does not see what is written under the root, or nobody can write it.
    """
    states = look_at_nodes(storage_root)
    if skew := find_skew(states):
        raise CodeSkew(f"Every node of a cluster runs the same code. {' '.join(skew)} {_FIX}")
    blind = [state.address for state in states if not state.sees_storage]
    if blind:
        raise StorageError(
            f"Every node must see the run folder; {storage_root.expanduser().absolute()} is "
            f"not the same on {', '.join(blind)}. Name a folder that all nodes share, such as an "
            "NFS mount, with --set storage.root=SHARED_FOLDER."
        )
    return states


@functools.cache
def _code_here() -> str:
    """Of this process as it was when it was first asked; a worker is asked with every trial."""
    return code_fingerprint()


def check_code(sender: str) -> None:
    """Makes sure that this worker runs the code of whoever sent it work.

    A node that an autoscaler started was not there when `check_nodes` asked.

    Args:
        sender: the sender's `code_fingerprint`; "" where both are of one machine.

    Raises:
        CodeSkew: this process has other sources or versions.
    """
    if sender and sender != _code_here():
        raise CodeSkew(
            f"Every node of a cluster runs the same code. {socket.gethostname()} has other flyball "
            f"sources or versions ({_code_here()}) than the job ({sender}). {_FIX}"
        )


def _look(proof: str, token: str) -> dict[str, Any]:
    """Runs on the node."""
    try:
        sees = Path(proof).read_text(encoding="ascii") == token
    except OSError:
        sees = False
    return {
        "sources": source_fingerprint(),
        "versions": versions_here(),
        "free_mb": shutil.disk_usage(os.path.dirname(proof)).free // 1_000_000 if sees else 0,
        "sees_storage": sees,
    }


def _ask(node: str, proof: Path, token: str) -> Any:
    pinned = NodeAffinitySchedulingStrategy(node, soft=False)
    asking = ray.remote(_look).options(num_cpus=0, max_retries=0, scheduling_strategy=pinned)
    return asking.remote(str(proof), token)


def _state(node: dict[str, Any], answer: Any) -> NodeState:
    said: dict[str, Any] = {"sources": "", "versions": {}, "free_mb": 0, "sees_storage": False}
    trouble = ""
    try:
        said = ray.get(answer, timeout=0)
    except ray.exceptions.GetTimeoutError:
        trouble = "it did not answer in time"
    except Exception as error:  # whatever its worker raised, an import error of old code above all
        # Ray wraps the error of the other side in a traceback; its last line names it.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        trouble = lines[-1] if lines else type(error).__name__
    return NodeState(
        node=node["NodeID"],
        address=node["NodeManagerAddress"],
        is_head=_HEAD_RESOURCE in node["Resources"],
        cpus=float(node["Resources"].get("CPU", 0)),
        gpus=float(node["Resources"].get("GPU", 0)),
        trouble=trouble,
        **said,
    )


def _fault(state: NodeState) -> str:
    if state.trouble:
        return f"Node {state.address} could not run this code: {state.trouble}."
    here = versions_here()
    other = [
        f"{name} {state.versions.get(name, 'missing')} instead of {at}"
        for name, at in here.items()
        if state.versions.get(name) != at
    ]
    if other:
        return f"Node {state.address} has {', '.join(other)}."
    sources = source_fingerprint()
    if state.sources != sources:
        return f"Node {state.address} has other flyball sources ({state.sources}, here {sources})."
    return ""
