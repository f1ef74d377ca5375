"""Machines that a cluster file names: reached with the right key, and else told what is wrong."""

from pathlib import Path
from typing import Protocol

import pytest

from flyball.platform.reach import check_reach


class Machines(Protocol):
    """What the fixture gives; a test cannot import its type."""

    base: Path

    def run(self, command: str) -> object:
        """Runs a shell command on the client, in its working tree."""

    def write(self, name: str, text: str) -> None:
        """A file of the client's working tree."""


REACH = """
import yaml
from flyball.platform.reach import check_reach
config = yaml.safe_load(open("cluster.yaml"))
print(check_reach(config))
config["auth"]["ssh_private_key"] = "/run/base/keys/stranger"
config["provider"] |= {"worker_ips": [], "head_ip": "127.0.0.1"}
print(check_reach(config))
config["provider"]["head_ip"] = "127.0.0.9"
print(check_reach(config))
"""


def test_the_key_of_the_file_opens_the_machines_and_another_does_not(machines: Machines) -> None:
    machines.write("reach.py", REACH)
    said = str(getattr(machines.run("python reach.py"), "stdout", ""))
    right, stranger, nobody = said.strip().splitlines()
    assert right == "Reach(problems=[], reached=['127.0.0.1', '127.0.0.2'])"
    assert "127.0.0.1 does not take the key /run/base/keys/stranger for root" in stranger
    assert "ssh-copy-id -i /run/base/keys/stranger root@127.0.0.1" in stranger
    assert "127.0.0.9 cannot be reached over ssh" in nobody
    assert "Connection refused" in nobody


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text("secret", encoding="ascii")
    file.chmod(0o600)
    return file


def _config(token: Path | str, **auth: str) -> dict[str, object]:
    provider = {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []}
    return {"provider": provider, "auth": auth, "file_mounts": {"~/.ray/auth_token": str(token)}}


def test_a_key_that_is_not_there_is_named_before_anything_is_tried(token: Path) -> None:
    (problem,) = check_reach(_config(token, ssh_private_key="/no/such/key")).problems
    assert "auth.ssh_private_key names /no/such/key" in problem


def test_a_token_is_there_and_its_owner_s_alone(token: Path) -> None:
    cloud = _config(token) | {"provider": {"type": "aws"}}
    assert check_reach(cloud).problems == []
    token.chmod(0o644)
    (readable,) = check_reach(cloud).problems
    assert f"chmod 600 {token}" in readable
    token.write_text("\n", encoding="ascii")
    (empty,) = check_reach(cloud).problems
    assert "ray get-auth-token --generate" in empty
    (unmounted,) = check_reach(cloud | {"file_mounts": {}}).problems
    assert "file_mounts does not bring" in unmounted


def test_machines_of_a_manifest_are_the_operator_s() -> None:
    assert check_reach({"kind": "RayJob"}).problems == []
