"""Shipped cluster files are in order, and each kind of slip in one is found and named."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flyball.datapaths.errors import BadInput
from flyball.platform.clusters_check import check_cluster_file

REPOSITORY = Path(__file__).parents[2]
OWN = "cluster.yaml"
AWS = "platform/clusters/aws.yaml"
CLUSTER = "platform/clusters/kuberay-cluster.yaml"
JOB = "platform/clusters/kuberay-job.yaml"
SHIPPED = (OWN, AWS, CLUSTER, JOB)


def test_every_shipped_file_is_in_order() -> None:
    folder = REPOSITORY / "platform" / "clusters"
    assert {f"platform/clusters/{file.name}" for file in folder.iterdir()} | {OWN} == set(SHIPPED)
    for name in SHIPPED:
        assert check_cluster_file(REPOSITORY / name) == [], name


def _set(*steps: str | int, to: Any) -> Callable[[Any], None]:
    def change(config: Any) -> None:
        for step in steps[:-1]:
            config = config[step]
        config[steps[-1]] = to

    return change


def _drop(*steps: str | int) -> Callable[[Any], None]:
    def change(config: Any) -> None:
        for step in steps[:-1]:
            config = config[step]
        del config[steps[-1]]

    return change


GPU = ("available_node_types", "gpu")
WORKERS = ("spec", "workerGroupSpecs", 0)
JOB_HEAD = ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0)
SLIPS = [
    (OWN, _set("max_worker", to=2), "", "max_worker"),
    (OWN, _drop("provider", "worker_ips"), "provider", "worker_ips is missing"),
    (OWN, _set("provider", "head_pi", to="10.0.0.1"), "provider", "did you mean 'head_ip'"),
    (OWN, _set("provider", "worker_ips", to="10.0.0.2"), "provider.worker_ips", "array"),
    (OWN, _set("provider", "type", to="locl"), "", "Unsupported node provider: locl"),
    (OWN, _set("auth", "ssh_usr", to="me"), "auth", "ssh_usr"),
    (OWN, _set("setup_commands", to="make"), "setup_commands", "array"),
    (AWS, _set("head_node_type", to="haed"), "", "head_node_type"),
    (AWS, _drop("head_node_type"), "", "head_node_type"),
    (AWS, _set("max_workers", to="four"), "max_workers", "integer"),
    (AWS, _drop(*GPU, "resources"), "available_node_types.gpu", "resources"),
    (AWS, _set(*GPU, "max_worker", to=2), "available_node_types.gpu", "max_worker"),
    (AWS, _set("provider", "regoin", to="us-east-1"), "provider", "did you mean 'region'"),
    (
        AWS,
        _set(*GPU, "node_config", "InstanceTypo", to="g5.xlarge"),
        "available_node_types.gpu.node_config",
        "InstanceTypo",
    ),
    (
        AWS,
        _set(*GPU, "node_config", "InstanceType", to="g5.2xlrage"),
        "available_node_types.gpu.node_config.InstanceType",
        "did you mean 'g5.2xlarge'",
    ),
    (
        AWS,
        _set(*GPU, "node_config", "BlockDeviceMappings", 0, "Ebs", "VolumeSize", to="150 GB"),
        "available_node_types.gpu.node_config",
        "VolumeSize",
    ),
    (CLUSTER, _set(*WORKERS, "maxReplica", to=4), "maxReplica", "did you mean 'maxReplicas'"),
    (CLUSTER, _drop(*WORKERS, "groupName"), "spec.workerGroupSpecs[0]", "groupName is missing"),
    (CLUSTER, _set(*WORKERS, "maxReplicas", to="8"), "maxReplicas", "of type int, not '8'"),
    (CLUSTER, _set(*WORKERS, "minReplicas", to=9), "workerGroupSpecs[0]", "does not hold"),
    (CLUSTER, _drop("spec", "headGroupSpec"), "spec", "headGroupSpec is missing"),
    (CLUSTER, _set("spec", "authOptions", "mode", to="tokn"), "authOptions.mode", "one of token"),
    (CLUSTER, _set("apiVersion", to="ray.io/v1alpha1"), "apiVersion", "ray.io/v1"),
    (CLUSTER, _set("kind", to="RayClutser"), "kind", "RayCluster"),
    (JOB, _set(*JOB_HEAD, "imag", to="x"), "containers[0].imag", "did you mean 'image'"),
    (JOB, _drop(*JOB_HEAD, "name"), "containers[0]", "name is missing"),
    (JOB, _set(*JOB_HEAD, "env", 0, "value", to=0), "env[0].value", "put it in quotes"),
    (JOB, _set("spec", "entrypoin", to="x"), "spec.entrypoin", "did you mean 'entrypoint'"),
    (JOB, _drop("spec", "entrypoint"), "spec", "entrypoint is missing"),
]


@pytest.mark.parametrize(("name", "slip", "place", "problem"), SLIPS)
def test_a_slip_is_found_and_nothing_else(
    name: str, slip: Callable[[Any], None], place: str, problem: str, tmp_path: Path
) -> None:
    config = copy.deepcopy(yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8")))
    slip(config)
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    (finding,) = check_cluster_file(file)
    assert finding.place.endswith(place)
    assert problem in finding.problem


@pytest.mark.parametrize("text", ["- a list", "just words", "{", "\x00"])
def test_what_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    with pytest.raises(BadInput, match="cannot be read"):
        check_cluster_file(file)
    file.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=r"cluster\.yaml"):
        check_cluster_file(file)
