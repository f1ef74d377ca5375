"""What is wrong with a cluster file, found without a network: for `ray up`, by its provider.

Kubernetes manifests are judged in `kuberay_check`.
"""

import difflib
import functools
import importlib.util
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from flyball.datapaths.errors import BadInput
from flyball.platform.cluster import refusal_of_cluster_file
from flyball.platform.kuberay_check import check_manifest

__all__ = ["Finding", "check_cluster_file", "read_cluster_file"]

# Ray takes any key below `provider`; these are the ones it reads.
PROVIDER_KEYS = {
    "local": frozenset(
        {"type", "head_ip", "worker_ips", "external_head_ip", "coordinator_address"}
    ),
    "aws": frozenset(
        {
            "type",
            "region",
            "availability_zone",
            "cache_stopped_nodes",
            "use_internal_ips",
            "security_group",
            "key_pair",
            "aws_credentials",
            "cloudwatch",
        }
    ),
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        place: keys from the top of the file, such as "provider.region"; "" for the whole of it.
        problem: what is wrong there, and what to do.
    """

    place: str
    problem: str

    def __str__(self) -> str:
        """Both, as one line."""
        return f"{self.place}: {self.problem}" if self.place else self.problem


def check_cluster_file(path: Path) -> list[Finding]:
    """Everything that is wrong with a file for `ray up`, or a RayCluster or RayJob manifest.

    Args:
        path: a YAML file.

    Returns:
        Findings in the file's order; none if Ray, and the cloud or the operator, would take it.

    Raises:
        BadInput: there is no such file, or it is no YAML mapping.
    """
    config = read_cluster_file(path)
    if "apiVersion" in config or "kind" in config:
        return [Finding(place, problem) for place, problem in check_manifest(config)]
    found = _against_schema(config)
    provider = config.get("provider")
    if isinstance(provider, dict) and isinstance(provider.get("type"), str):
        found += _provider(provider)
        if provider["type"] == "aws":
            found += _aws_types(config.get("available_node_types"))
    # Ray's own words come last: it stops at its first complaint, and names no place.
    if not found and (refusal := refusal_of_cluster_file(config)):
        found.append(Finding("", f"Ray refuses the file: {refusal}"))
    return found


def read_cluster_file(path: Path) -> dict[str, Any]:
    """The file's mapping.

    Raises:
        BadInput: there is no such file, or it is no YAML mapping.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"The cluster file {path} cannot be read: {error}. Name one.") from error
    except yaml.YAMLError as error:
        raise BadInput(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise BadInput(
            f"A cluster file is a mapping, and {path} is not. Start from cluster.yaml or a file "
            "of platform/clusters/."
        )
    return config


def _against_schema(config: dict[str, Any]) -> list[Finding]:
    spec = importlib.util.find_spec("ray")
    if spec is None or spec.origin is None:
        return [Finding("", "Ray is not installed here, so that nothing could be checked.")]
    schema = Path(spec.origin).parent / "autoscaler" / "ray-schema.json"
    validator = import_module("jsonschema").Draft7Validator(
        json.loads(schema.read_text(encoding="utf-8"))
    )
    return [
        Finding(".".join(str(step) for step in error.absolute_path), _brief(error.message))
        for error in validator.iter_errors(config)
    ]


def _provider(provider: dict[str, Any]) -> list[Finding]:
    kind = provider["type"]
    found = _unknown("provider", provider, PROVIDER_KEYS.get(kind, provider))
    if kind == "local" and "coordinator_address" not in provider:
        for name in ("head_ip", "worker_ips"):
            if name not in provider:
                found.append(Finding("provider", f"{name} is missing: the addresses of your own"))
    if kind == "aws" and "region" not in provider:
        found.append(Finding("provider", "region is missing, such as us-west-2"))
    return found


def _aws_types(types: Any) -> list[Finding]:
    found: list[Finding] = []
    for name, node in (types if isinstance(types, dict) else {}).items():
        config = node.get("node_config") if isinstance(node, dict) else None
        if isinstance(config, dict):
            found += _run_instances(f"available_node_types.{name}.node_config", config)
    return found


def _run_instances(place: str, given: dict[str, Any]) -> list[Finding]:
    """Against the parameters of EC2's RunInstances, to which Ray hands them."""
    try:
        shape = _run_instances_shape()
    except ImportError:
        return [Finding(place, "cannot be checked without botocore: pip install boto3")]
    # `SubnetIds` is Ray's own: it takes one of them for each instance.
    asked = {name: value for name, value in given.items() if name != "SubnetIds"}
    validator = import_module("botocore.validate").ParamValidator()
    report = validator.validate({"MinCount": 1, "MaxCount": 1, **asked}, shape)
    found = [Finding(place, _brief(line)) for line in report.generate_report().splitlines()]
    known = shape.members["InstanceType"].enum
    kind = asked.get("InstanceType")
    if kind is None and "LaunchTemplate" not in asked:
        found.append(Finding(place, "InstanceType is missing, such as g5.2xlarge"))
    elif isinstance(kind, str) and kind not in known:
        found.append(Finding(f"{place}.InstanceType", _no_such("instance type", kind, known)))
    return found


@functools.cache
def _run_instances_shape() -> Any:
    loaders, model = import_module("botocore.loaders"), import_module("botocore.model")
    service = model.ServiceModel(loaders.Loader().load_service_model("ec2", "service-2"))
    return service.operation_model("RunInstances").input_shape


def _unknown(place: str, given: Iterable[str], known: Iterable[str]) -> list[Finding]:
    wanted = set(known)
    return [Finding(place, _no_such("key", key, wanted)) for key in given if key not in wanted]


def _no_such(kind: str, given: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(given), sorted(known), n=1, cutoff=0.5)
    return f"there is no {kind} {given!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _brief(message: str) -> str:
    return message if len(message) <= 200 else f"{message[:200]} ..."
