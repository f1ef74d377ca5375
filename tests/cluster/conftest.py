"""Machines for tests of clusters: namespaces of this one, with loopback between them alone."""

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
LIMIT_S = 300.0
NODE = Path(__file__).with_name("node.sh")
NAMESPACES = ("--pid", "--mount", "--uts", "--ipc")
TOOLS = ("unshare", "nsenter", "setpriv", "ip", "rsync", "ssh", "ssh-keygen", "sshd")
SOURCES = ("kernels", "datapaths", "envs", "controllers", "platform")
FILES = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "train_controller.py")
PATH = f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Machines:
    """A client, a head and a worker.

    Attributes:
        base: their homes, the client's working tree (tree) and a folder that all share (shared);
            it is /run/base on each of them.
        pids: of each machine's first process, by name.
    """

    base: Path
    pids: dict[str, int]

    def write(self, name: str, text: str) -> None:
        """A file of the client's working tree."""
        (self.base / "tree" / name).write_text(text, encoding="utf-8")

    def run(
        self, command: str, *, on: str = "client", env: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Runs a shell command in the client's working tree; stdout and stderr are joined."""
        enter = ["nsenter", f"--target={self.pids[on]}", "--all"]
        clean = ["env", "-i", f"PATH={PATH}", f"HOME=/run/base/{on}", "LANG=C.UTF-8", "USER=root"]
        settings = ["RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0", *env.split()]
        return subprocess.run(
            [*enter, *clean, *settings, "bash", "-c", f"cd /run/base/tree && {command}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Starts them, each with an ssh server; they end with everything that runs on them."""
    if why := _obstacle():
        pytest.skip(why)
    base = tmp_path_factory.mktemp("machines")
    _make_keys(base / "keys")
    _copy_tree(base / "tree")
    _write_cluster_file(base / "tree")
    (base / "shared").mkdir()
    for name in ("client", "head", "worker"):
        (base / name / ".ray").mkdir(parents=True)
    token = base / "client" / ".ray" / "auth_token"
    token.write_text(secrets.token_hex(32), encoding="ascii")
    token.chmod(0o600)
    running: list[subprocess.Popen[str]] = []
    pids: dict[str, int] = {}
    try:
        for name, address in (("client", "-"), ("head", "127.0.0.1"), ("worker", "127.0.0.2")):
            running.append(_start(name, address, base, pids.get("client")))
            assert running[-1].stdout is not None
            assert running[-1].stdout.readline() == "ready\n"
            pids[name] = _only_child(running[-1].pid)
        yield Machines(base, pids)
    finally:
        for process in reversed(running):
            process.kill()
            process.communicate(timeout=30)


def _obstacle() -> str:
    if os.geteuid() != 0:
        return "namespaces with ssh servers of their own need root"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    probe = ["unshare", "--net", *NAMESPACES, "--fork", "--mount-proc", "mount", "-t", "tmpfs"]
    tried = subprocess.run([*probe, "tmpfs", "/mnt"], capture_output=True, text=True, check=False)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


def _start(name: str, address: str, base: Path, network: int | None) -> subprocess.Popen[str]:
    join = ["nsenter", f"--target={network}", "--net"] if network else []
    own = [*NAMESPACES, "--fork", "--mount-proc", "--kill-child"]
    become = ["unshare", *([] if network else ["--net"]), *own]
    node = ["bash", str(NODE), name, address, str(base), str(REPOSITORY)]
    with (base / f"{name}.log").open("w") as log:
        return subprocess.Popen(
            # All of it ends with the test, however that ends.
            ["setpriv", "--pdeathsig", "KILL", *join, *become, *node],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )


def _only_child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def _make_keys(folder: Path) -> None:
    folder.mkdir()
    for name in ("host", "user", "stranger"):
        quiet = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(quiet, check=True)


def _copy_tree(folder: Path) -> None:
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        shutil.copytree(REPOSITORY / name, folder / name, ignore=unwanted)
    for name in (*FILES, "cluster.yaml", ".gitignore"):
        shutil.copy(REPOSITORY / name, folder / name)


def _write_cluster_file(tree: Path) -> None:
    """The shipped cluster file for these machines, without what needs a network."""
    config = yaml.safe_load((tree / "cluster.yaml").read_text(encoding="utf-8"))
    config["provider"] |= {"head_ip": "127.0.0.1", "worker_ips": ["127.0.0.2"]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": "/run/base/keys/user"}
    # In place of an environment for each node, the one that runs this test, which looks for the
    # sources first where the cluster file put them.
    install = [line for line in config["setup_commands"] if "tools/bin" in line]
    kept = [line for line in config["setup_commands"] if line not in install]
    roots = ":".join(f"$HOME/flyball/{name}" for name in SOURCES)
    # Ray sources the file again for each worker, after it has put its own folders in front.
    paths = f"PATH={sys.prefix}/bin:$PATH PYTHONPATH=${{PYTHONPATH:+$PYTHONPATH:}}{roots}"
    own = f"echo 'export {paths}' >> ~/.flyball/env"
    config["setup_commands"] = ["mkdir -p ~/.flyball", *kept, own]
    small = "--num-cpus=2 --object-store-memory=100000000"
    for kind, address in (("head", "127.0.0.1"), ("worker", "127.0.0.2")):
        commands = config[f"{kind}_start_ray_commands"]
        commands[-1] += f" {small} --node-ip-address={address}"
    (tree / "cluster.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
