"""What is wrong with a RayCluster or RayJob manifest: Ray's fields by a table, pods by the client.

Pods are judged by the models of the `kubernetes` package, which know each field and its type.
Fields are those of KubeRay 1.5, ray.io/v1; what the operator writes itself (`status`) is left out.
"""

import difflib
import re
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["check_manifest"]

API_VERSION = "ray.io/v1"
Problem = tuple[str, str]

# Types are written as the kubernetes package writes its own; "!" marks fields that must be there.
TYPES: dict[str, dict[str, str]] = {
    "RayCluster": {
        "apiVersion": "!str",
        "kind": "!str",
        "metadata": "!V1ObjectMeta",
        "spec": "!RayClusterSpec",
    },
    "RayJob": {
        "apiVersion": "!str",
        "kind": "!str",
        "metadata": "!V1ObjectMeta",
        "spec": "!RayJobSpec",
    },
    "RayClusterSpec": {
        "authOptions": "AuthOptions",
        "autoscalerOptions": "AutoscalerOptions",
        "enableInTreeAutoscaling": "bool",
        "gcsFaultToleranceOptions": "GcsFaultToleranceOptions",
        "headGroupSpec": "!HeadGroupSpec",
        "headServiceAnnotations": "Dict[str, str]",
        "managedBy": "str",
        "rayVersion": "str",
        "suspend": "bool",
        "workerGroupSpecs": "List[WorkerGroupSpec]",
    },
    "AuthOptions": {"mode": "str", "secretName": "str", "enableK8sTokenAuth": "bool"},
    "AutoscalerOptions": {
        "env": "List[V1EnvVar]",
        "envFrom": "List[V1EnvFromSource]",
        "idleTimeoutSeconds": "int",
        "image": "str",
        "imagePullPolicy": "str",
        "resources": "V1ResourceRequirements",
        "securityContext": "V1SecurityContext",
        "upscalingMode": "str",
        "version": "str",
        "volumeMounts": "List[V1VolumeMount]",
    },
    "GcsFaultToleranceOptions": {
        "externalStorageNamespace": "str",
        "redisAddress": "!str",
        "redisPassword": "RedisCredential",
        "redisUsername": "RedisCredential",
    },
    "RedisCredential": {"value": "str", "valueFrom": "V1EnvVarSource"},
    "HeadGroupSpec": {
        "enableIngress": "bool",
        "headService": "V1Service",
        "rayStartParams": "Dict[str, str]",
        "serviceType": "str",
        "template": "!V1PodTemplateSpec",
    },
    "WorkerGroupSpec": {
        "groupName": "!str",
        "idleTimeoutSeconds": "int",
        "maxReplicas": "!int",
        "minReplicas": "!int",
        "numOfHosts": "int",
        "rayStartParams": "Dict[str, str]",
        "replicas": "int",
        "scaleStrategy": "ScaleStrategy",
        "suspend": "bool",
        "template": "!V1PodTemplateSpec",
    },
    "ScaleStrategy": {"workersToDelete": "List[str]"},
    "RayJobSpec": {
        "activeDeadlineSeconds": "int",
        "backoffLimit": "int",
        "clusterSelector": "Dict[str, str]",
        "entrypoint": "str",
        "entrypointNumCpus": "float",
        "entrypointNumGpus": "float",
        "entrypointResources": "str",
        "jobId": "str",
        "managedBy": "str",
        "metadata": "Dict[str, str]",
        "rayClusterSpec": "RayClusterSpec",
        "runtimeEnvYAML": "str",
        "shutdownAfterJobFinishes": "bool",
        "submissionMode": "str",
        "submitterConfig": "SubmitterConfig",
        "submitterPodTemplate": "V1PodTemplateSpec",
        "suspend": "bool",
        "ttlSecondsAfterFinished": "int",
    },
    "SubmitterConfig": {"backoffLimit": "int"},
}
CHOICES = {
    ("AuthOptions", "mode"): ("token", "disabled"),
    ("AutoscalerOptions", "upscalingMode"): ("Default", "Aggressive", "Conservative"),
    ("AutoscalerOptions", "version"): ("v1", "v2"),
    ("HeadGroupSpec", "serviceType"): ("ClusterIP", "NodePort", "LoadBalancer"),
    ("RayJobSpec", "submissionMode"): ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"),
}
_PLAIN: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "bytes": (str,),
    "datetime": (str,),
}


def check_manifest(manifest: dict[str, Any]) -> list[Problem]:
    """(place, problem) of everything that the operator or Kubernetes would refuse or not read.

    Args:
        manifest: of one object, parsed.
    """
    try:
        client = import_module("kubernetes.client")
    except ImportError:
        return [("", "Manifests are checked by the kubernetes package: pip install kubernetes")]
    if manifest.get("apiVersion") != API_VERSION:
        return [("apiVersion", f"is {API_VERSION}, not {manifest.get('apiVersion')!r}")]
    kind = manifest.get("kind")
    if kind not in ("RayCluster", "RayJob"):
        return [("kind", f"is RayCluster or RayJob, not {kind!r}")]
    found = list(_walk(client, manifest, kind, ""))
    return found or list(_sense(manifest))


def _walk(client: ModuleType, value: Any, kind: str, place: str) -> Iterator[Problem]:
    """Problems of a value that should be of a type."""
    if nested := re.fullmatch(r"List\[(.+)\]", kind):
        if not isinstance(value, list):
            yield place, f"is a list, not {value!r:.60}"
            return
        for index, item in enumerate(value):
            yield from _walk(client, item, nested[1], f"{place}[{index}]")
    elif nested := re.fullmatch(r"Dict\[str, (.+)\]", kind):
        if not isinstance(value, dict):
            yield place, f"is a mapping, not {value!r:.60}"
            return
        for name, item in value.items():
            yield from _walk(client, item, nested[1], f"{place}.{name}")
    elif kind in _PLAIN:
        is_right = isinstance(value, _PLAIN[kind])
        if not is_right or (kind != "bool" and isinstance(value, bool)):
            advice = '; put it in quotes: "..."' if kind == "str" else ""
            yield place, f"is of type {kind}, not {value!r:.60}{advice}"
    elif kind != "object":
        yield from _walk_fields(client, value, kind, place)


def _walk_fields(client: ModuleType, value: Any, kind: str, place: str) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield place, f"is a mapping, not {value!r:.60}"
        return
    fields, required = _fields(client, kind)
    for name in required - value.keys():
        yield place, f"{name} is missing"
    for name, item in value.items():
        inner = f"{place}.{name}" if place else str(name)
        if name not in fields:
            near = difflib.get_close_matches(str(name), sorted(fields), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            yield inner, f"there is no such field{hint}"
        elif item is not None:
            yield from _walk(client, item, fields[name], inner)
            choices = CHOICES.get((kind, name))
            if choices and item not in choices:
                yield inner, f"is one of {', '.join(choices)}, not {item!r:.60}"


def _fields(client: ModuleType, kind: str) -> tuple[dict[str, str], set[str]]:
    """Types of a type's fields by the names in a manifest, and those that must be there."""
    if kind in TYPES:
        own = TYPES[kind]
        return (
            {name: hint.removeprefix("!") for name, hint in own.items()},
            {name for name, hint in own.items() if hint.startswith("!")},
        )
    model = getattr(client, kind)
    fields = {model.attribute_map[name]: hint for name, hint in model.openapi_types.items()}
    if kind == "V1ResourceRequirements":
        # A quantity may be written as a number, which only the client's own types deny.
        fields |= {"limits": "Dict[str, object]", "requests": "Dict[str, object]"}
    required = {
        model.attribute_map[name]
        for name, field in model.model_fields.items()
        if field.is_required() and name in model.attribute_map
    }
    return fields, required


def _sense(manifest: dict[str, Any]) -> Iterator[Problem]:
    """Values of the right type that cannot work together."""
    spec, place = manifest["spec"], "spec"
    if manifest["kind"] == "RayJob":
        if not spec.get("entrypoint") and spec.get("submissionMode") != "InteractiveMode":
            yield place, "entrypoint is missing: the command that the job runs"
        if not spec.get("rayClusterSpec") and not spec.get("clusterSelector"):
            yield place, "rayClusterSpec is missing: the cluster that the job runs on"
        spec, place = spec.get("rayClusterSpec") or {}, "spec.rayClusterSpec"
    names = set()
    for index, group in enumerate(spec.get("workerGroupSpecs") or ()):
        where = f"{place}.workerGroupSpecs[{index}]"
        least, most = group["minReplicas"], group["maxReplicas"]
        if not 0 <= least <= group.get("replicas", least) <= most:
            yield where, "0 <= minReplicas <= replicas <= maxReplicas does not hold"
        if group["groupName"] in names:
            yield where, f"there is another group {group['groupName']!r}"
        names.add(group["groupName"])
