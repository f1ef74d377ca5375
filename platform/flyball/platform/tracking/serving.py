"""Serving a registered governor over HTTP: MLflow's own scoring server, on loopback."""

import os
import subprocess
import sys
from pathlib import Path

from flyball.datapaths.errors import unknown_name
from flyball.platform.tracking.runs import Tracking
from flyball.platform.tracking.versions import list_versions

__all__ = ["serve_command", "serve_environment", "serve_model"]


def serve_command(tracking: Tracking, name: str, alias: str, *, port: int) -> list[str]:
    """The command that serves a registered model in this environment.

    Raises:
        UnknownName: no version of the model has the alias.
    """
    aliases = {alias for version in list_versions(tracking, name) for alias in version.aliases}
    if alias not in aliases:
        raise unknown_name(
            f"alias of {name!r}", alias, aliases or ("none yet",), advice="Train a governor first."
        )
    uri = f"models:/{name}@{alias}"
    options = ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, *options]


def serve_model(tracking: Tracking, name: str, alias: str, *, port: int) -> int:
    """Serves until it is interrupted; POST {"inputs": images} to /invocations.

    Args:
        tracking: whose registry.
        name: of the registered model.
        alias: "champion" or "challenger".
        port: on 127.0.0.1; nothing beyond loopback listens.

    Returns:
        The server's exit code.
    """
    command = serve_command(tracking, name, alias, port=port)
    return subprocess.run(command, env=serve_environment(tracking), check=False).returncode


def serve_environment(tracking: Tracking) -> dict[str, str]:
    """The environment of that command: where the registry is, and that no pickle is loaded."""
    # MLflow starts uvicorn by name; it lies beside this interpreter, activated or not.
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {
        **os.environ,
        "PATH": programs,
        "MLFLOW_TRACKING_URI": tracking.uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
