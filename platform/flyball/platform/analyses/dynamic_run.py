"""Analyses of dynamic convolution networks, from finished artifacts to what they found."""

from dataclasses import replace

from flyball.platform.analyses.blocks import block_deaths, network_twin
from flyball.platform.analyses.dynamic import check_dynamic, dynamic_path
from flyball.platform.analyses.executed import executed_budgets
from flyball.platform.analyses.ponder import ponder_maps
from flyball.platform.analyses.request import Found, Request, parents_of
from flyball.platform.analyses.static_baseline import against_static
from flyball.platform.analyses.static_baseline_networks import (
    StaticNetwork,
    static_fingerprint,
    static_network,
    static_networks,
)
from flyball.platform.prepare import prepare
from flyball.platform.stages import build_path, served_path

__all__ = ["blocks", "executed", "ponder", "static"]


def ponder(request: Request) -> Found:
    """How many blocks run at every pixel of some images (DynConv Figs. 4 and 8)."""
    done = request.dynamic()
    path, count = dynamic_path(done), request.options.images
    found = ponder_maps(path, done.ready.images, count=count, report=request.report)
    return Found(found, parents_of(done, None), {"images": count})


def executed(request: Request) -> Found:
    """Budgets asked for and executed, MACs of classes, rates of blocks (DynConv Fig. 6)."""
    done = request.dynamic()
    path, samples = dynamic_path(done), request.options.samples
    found = executed_budgets(path, done.ready.images, samples=samples, report=request.report)
    return Found(found, parents_of(done, None), {"samples": samples})


def blocks(request: Request) -> Found:
    """Blocks that die, with annealed bounds and with the network loss alone (DynConv Fig. 9)."""
    for job in request.jobs:
        network_twin(job)
    done = request.dynamic()
    job, samples = done.ready.job, request.options.samples
    alone = network_twin(job)
    ready = prepare(alone, report=request.report)
    request.say("Twin           the same job with the network loss alone: trained, or found")
    other = served_path(build_path(ready, report=request.report).path, alone)
    twin = replace(done, ready=ready, path=other)
    config = check_dynamic(job)
    found = block_deaths(
        [
            (config.sparsity.criterion, dynamic_path(done)),
            ("network", dynamic_path(twin)),
        ],
        done.ready.images,
        target=None if config.network.is_budgeted else config.sparsity.target,
        alpha=config.sparsity.alpha,
        samples=samples,
        report=request.report,
    )
    parents = {**parents_of(done, None), "network": other.fingerprint}
    return Found(found, parents, {"samples": samples})


def static(request: Request) -> Found:
    """Accuracy against executed MACs beside dense networks trained alike (DynConv Fig. 5)."""
    done = request.dynamic()
    ready, config = done.ready, done.ready.network
    folder, device = ready.runs.root / "static", ready.job.compute.device
    dense: dict[str, StaticNetwork] = {}
    for name, network in static_networks(config.network).items():
        request.say(f"Dense          {name}: trained, or found")
        place = static_fingerprint(network, config, ready.job.phase1, ready.images)
        with ready.runs.locked(folder / place):
            dense[name] = static_network(
                network,
                config,
                ready.job.phase1,
                ready.images,
                folder,
                device=device,
                report=request.report,
            )
    found = against_static(
        dynamic_path(done),
        done.atlas,
        ready.images,
        dense,
        epochs=ready.job.phase1.epochs,
        device=device,
        report=request.report,
    )
    return Found(
        found,
        parents_of(done, None),
        {"dense": {name: network.fingerprint for name, network in dense.items()}},
    )
