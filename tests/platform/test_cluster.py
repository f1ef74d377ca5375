"""Ray: started here for one block, or joined where it runs, and never anything else."""

from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

from flyball.datapaths.errors import BadInput
from flyball.platform.cluster import check_ray_address, ray_session


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    running = Cluster(initialize_head=True, connect=False, head_node_args=head)
    yield running
    running.shutdown()  # type: ignore[no-untyped-call]


def test_it_joins_the_cluster_at_the_address_and_leaves_it_running(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    address = check_ray_address(None)
    assert address == cluster.address
    for _ in range(2):  # it is still there the second time
        with ray_session(address):
            assert ray.get_runtime_context().gcs_address == cluster.address
        assert not ray.is_initialized()


def test_without_an_address_it_starts_its_own_even_beside_a_running_one(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with ray_session(check_ray_address(None)):
        assert ray.get_runtime_context().gcs_address != cluster.address
        with ray_session("local"):  # one that runs in this process is used, and left running
            pass
        assert ray.is_initialized()
    assert not ray.is_initialized()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "host:port"])
def test_an_address_where_nothing_answers_is_refused(address: str) -> None:
    with pytest.raises(BadInput, match="No Ray cluster answers at"):
        check_ray_address(address)
