"""Whether the machines that a cluster file names can be reached as `ray up` will reach them."""

import os
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Reach", "check_reach"]

TOKEN = "~/.ray/auth_token"
_CONNECT_S = 5


@dataclass(frozen=True)
class Reach:
    """What was found.

    Attributes:
        problems: one sentence each, with what to do.
        reached: addresses on which a command ran.
    """

    problems: list[str]
    reached: list[str]


def check_reach(config: dict[str, Any]) -> Reach:
    """Looks at the token and the key here, and runs `true` on each machine that is named.

    Args:
        config: a cluster file without faults; a cloud's machines are not there yet, and those of a
            manifest are the operator's.
    """
    if "provider" not in config:
        return Reach([], [])
    problems = _token_problems(config.get("file_mounts") or {})
    provider, auth = config["provider"], config.get("auth") or {}
    if provider["type"] != "local" or "head_ip" not in provider:
        return Reach(problems, [])
    key = auth.get("ssh_private_key")
    if key is not None and not Path(key).expanduser().is_file():
        problems.append(
            f"auth.ssh_private_key names {key}, and there is no such file. Make one with "
            f"`ssh-keygen -t ed25519 -f {key}` and bring it to the machines with `ssh-copy-id`."
        )
        return Reach(problems, [])
    addresses = [provider.get("external_head_ip") or provider["head_ip"], *provider["worker_ips"]]
    with ThreadPoolExecutor(max_workers=16) as pool:
        knocks = [pool.submit(_knock, address, auth.get("ssh_user"), key) for address in addresses]
        answers = {
            address: knock.result() for address, knock in zip(addresses, knocks, strict=True)
        }
    problems += [problem for problem in answers.values() if problem]
    return Reach(problems, [address for address, problem in answers.items() if not problem])


def _token_problems(mounts: dict[str, str]) -> list[str]:
    local = mounts.get(TOKEN)
    if local is None:
        return [
            f"file_mounts does not bring {TOKEN} to the nodes, so that anyone who reaches the head "
            f"could run code there. Add `{TOKEN}: {TOKEN}`."
        ]
    file = Path(local).expanduser()
    if not file.is_file() or not file.read_text(encoding="utf-8", errors="replace").strip():
        return [f"There is no token in {local}. Make one with `ray get-auth-token --generate`."]
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return [f"Others on this machine can read the token in {local}: chmod 600 {local}"]
    return []


def _knock(address: str, user: str | None, key: str | None) -> str:
    """Runs `true` there; gives the problem, or "" if it ran."""
    at = f"{user}@{address}" if user else address
    command = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_S}"]
    # As Ray calls it: it does not look at host keys.
    command += ["-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={os.devnull}"]
    command += ["-o", "LogLevel=ERROR"]
    if key is not None:
        command += ["-o", "IdentitiesOnly=yes", "-i", os.path.expanduser(key)]
    try:
        tried = subprocess.run(
            [*command, at, "true"],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=4 * _CONNECT_S,
            check=False,
        )
    except FileNotFoundError:
        return "ssh is not installed here: apt-get install openssh-client rsync"
    except subprocess.TimeoutExpired:
        return f"{address} accepts ssh and then does not answer. Look after the machine."
    if tried.returncode == 0:
        return ""
    said = (tried.stderr.strip().splitlines() or ["no reason given"])[-1]
    if "Permission denied" in said:
        return (
            f"{address} does not take the key {key} for {user}. Put the public half into its "
            f"authorized_keys: ssh-copy-id -i {key} {at}"
        )
    return f"{address} cannot be reached over ssh: {said}. Look at the address and its ssh server."
