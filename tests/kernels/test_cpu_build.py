"""The C++ operators are compiled once, survive broken caches, and say why they cannot run."""

import ctypes
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flyball.kernels.cpu.build import (
    LibraryUnavailable,
    available,
    build_library,
    library_folder,
    load_library,
)

FLAVOURS = {
    "narrow": ("-O1", "-mno-avx512f"),
    "narrowest": ("-O1", "-mno-avx512f", "-mno-avx"),
    "sanitized": ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
}

# Runs in a process of its own: a block of odd sizes on guarded memory, through a library of flags.
TRIAL = """
import sys, torch
from flyball.kernels.cpu import blocks, operators
from flyball.kernels.cpu.build import load_library
found = load_library(sys.argv[1:])
operators.library = blocks.library = lambda: found
draw = torch.Generator().manual_seed(0)
new = lambda *shape: torch.randn(*shape, generator=draw) / shape[-1] ** 0.5
lanes = found.flyball_lanes()
for threads in (1, 2):
    torch.set_num_threads(threads)
    for C, E, O, stride in ((5, 19, 5, 1), (16, 70, 7, 2), (3, 33, 3, 1)):
        weights = new(E, C), new(E), new(E, 3, 3), new(E), new(O, E), new(O)
        packed = blocks.pack_inverted_residual(*weights, stride=stride)
        x, mask = new(2 * 23 * 17, C), torch.rand(2, 23, 17, generator=draw) < 0.2
        if stride == 2:
            mask = mask[:, ::2, ::2].contiguous()
        identity = x if stride == 1 else new(mask.numel(), O)
        out = torch.full((mask.numel(), O), torch.nan)
        blocks.run_block(packed, x, mask, (2, 23, 17), identity, out)
        pixels = x.view(2, 23, 17, C).permute(0, 3, 1, 2).double()
        expand, b1, depthwise, b2, project, b3 = (t.double() for t in weights)
        F = torch.nn.functional
        y = F.relu6(F.conv2d(pixels, expand[:, :, None, None], b1))
        y = F.relu6(F.conv2d(y, depthwise[:, None], b2, stride, 1, 1, E))
        y = F.conv2d(y, project[:, :, None, None], b3) * mask[:, None]
        wanted = identity + y.permute(0, 2, 3, 1).reshape(-1, O)
        error = float((out - wanted).abs().max() / wanted.abs().max())
        assert error < 1e-5, (C, E, O, stride, error)
        if stride == 1:
            blocks.run_block(packed, x, mask, (2, 23, 17), x, x)
            assert torch.equal(x, out)
    for width in (16, 33):
        packed = blocks.pack_basic_block(new(width, width, 3, 3), new(width),
                                         new(width, width, 3, 3), new(width))
        x = new(2 * 23 * 17, width)
        mask = torch.rand(2, 23, 17, generator=draw) < 0.2
        blocks.run_block(packed, x, mask, (2, 23, 17), x, torch.empty_like(x))
    weight = operators.pack_rows_weight(new(9, 5, 37))
    table = torch.randint(-1, 40, (50, 9), generator=draw, dtype=torch.int32)
    rows, bias = new(40, 5), new(37)
    operators.gather_gemm(rows, table, weight, bias, "relu", torch.empty(50, 37))
    positions = torch.arange(50, dtype=torch.int32) * 2
    operators.gather_gemm_scatter(rows, table, weight, bias, new(99, 37), positions, "none")
    operators.depthwise(rows, table, new(9, 5), new(5), "relu6", torch.empty(50, 5))
print(lanes)
"""


@pytest.fixture(autouse=True)
def compiler() -> str:
    """The compiler found here; without one there is nothing to test."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    pytest.skip("no C++ compiler")


@pytest.fixture
def whole(compiler: str) -> Path:
    """A library that loads, from the usual cache."""
    return build_library()


@pytest.fixture
def cache(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FLYBALL_CACHE", str(folder))
    return folder


@pytest.fixture
def calls(tmp_path: Path, whole: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the compiler that "compiles" by copying; the file lists its calls."""
    return stand_in(tmp_path, monkeypatch, f'cp {whole} "$target"')


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str) -> Path:
    calls, script = tmp_path / "calls", tmp_path / "compiler"
    calls.touch()
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {calls}\n'
        'for word in "$@"; do [ "$before" = -o ] && target="$word"; before="$word"; done\n'
        f"{action}\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return calls


def count(calls: Path) -> int:
    return len(calls.read_text().splitlines())


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "kernels").iterdir())


def test_compiles_once_and_then_takes_the_cache(calls: Path, cache: Path) -> None:
    assert isinstance(load_library(), ctypes.CDLL)
    assert isinstance(load_library(), ctypes.CDLL)
    assert count(calls) == 1
    assert left_in(cache) == [library_folder().name]
    assert library_folder().parent == cache / "kernels"


def test_a_cached_library_needs_no_compiler(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_library()
    monkeypatch.setenv("CXX", "/there/is/none")
    assert load_library().flyball_lanes() >= 4


@pytest.mark.parametrize("kept", [0, 100, 20_000])
def test_a_cut_library_is_rebuilt_once(calls: Path, cache: Path, kept: int) -> None:
    path = build_library()
    path.write_bytes(path.read_bytes()[:kept])
    assert load_library().flyball_lanes() >= 4
    assert count(calls) == 2
    assert left_in(cache) == [library_folder().name]


def test_a_lost_file_is_rebuilt(calls: Path) -> None:
    build_library().unlink()
    assert load_library().flyball_lanes() >= 4
    assert count(calls) == 2


def test_a_library_that_never_loads_names_the_folder_to_delete(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stand_in(tmp_path, monkeypatch, 'echo nonsense > "$target"')
    with pytest.raises(LibraryUnavailable, match="Delete that folder") as caught:
        load_library()
    assert str(library_folder()) in str(caught.value)
    assert count(calls) == 2


def test_a_build_that_dies_leaves_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, 'echo half > "$target"; kill -9 $$')
    with pytest.raises(LibraryUnavailable, match="could not compile"):
        build_library()
    assert left_in(cache) == []


def test_a_compilers_error_is_passed_on(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, 'echo "x.cpp:1: error: no such header" >&2; exit 1')
    with pytest.raises(LibraryUnavailable, match=r"no such header.*Set CXX"):
        build_library()


def test_a_compiler_without_openmp_builds_for_one_thread(
    tmp_path: Path, cache: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    action = f'case "$*" in *-fopenmp*) exit 1;; esac; cp {whole} "$target"'
    calls = stand_in(tmp_path, monkeypatch, action)
    build_library()
    assert ["-fopenmp" in call for call in calls.read_text().splitlines()] == [True, False]


def test_what_a_killed_build_left_long_ago_is_removed(calls: Path, cache: Path) -> None:
    old, new = cache / "kernels" / ".building-old", cache / "kernels" / ".building-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    build_library()
    assert left_in(cache) == sorted([".building-new", library_folder().name])


def test_many_builders_at_once_agree(calls: Path, cache: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: build_library(), range(16)))
    assert set(paths) == {library_folder() / "operators.so"}
    assert load_library().flyball_lanes() >= 4
    assert left_in(cache) == [library_folder().name]


def test_another_processor_or_other_flags_get_another_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = library_folder()
    assert library_folder(("-g",)) != here
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "another")
    assert library_folder() != here


def test_a_cache_that_cannot_be_written_is_named(
    calls: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLYBALL_CACHE", str(tmp_path / "file"))
    with pytest.raises(LibraryUnavailable, match="FLYBALL_CACHE"):
        build_library()


def test_without_a_compiler_it_says_so_and_does_not_raise(cache: Path) -> None:
    asked = "from flyball.kernels.cpu import available; print(*available(), sep='|')"
    environment = {**os.environ, "CXX": "/there/is/none"}
    ran = subprocess.run(
        [sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True
    )
    can, why = ran.stdout.strip().split("|")
    assert can == "False"
    assert "CXX names /there/is/none" in why
    assert "Install g++" in why


def test_here_it_is_available(whole: Path) -> None:
    can, why = available()
    assert can
    assert why.startswith("C++ operators, ")


@pytest.mark.timeout(900)  # a compilation each, the first time
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_width_of_vector_and_the_sanitizers_agree(flavour: str, compiler: str) -> None:
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    if flavour == "sanitized":
        asked = [compiler, "-print-file-name=libasan.so"]
        runtime = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        if not Path(runtime).is_file():
            pytest.skip("the compiler has no address sanitizer to load")
        environment["LD_PRELOAD"] = str(Path(runtime).resolve())
    elif os.uname().machine != "x86_64":
        pytest.skip("one width of vectors on this processor")
    build_library(FLAVOURS[flavour])
    ran = subprocess.run(
        [sys.executable, "-c", TRIAL, *FLAVOURS[flavour]],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    if flavour != "sanitized":
        assert int(ran.stdout) == {"narrow": 8, "narrowest": 4}[flavour]
