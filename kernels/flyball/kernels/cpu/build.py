"""Compiles the C++ operators once for this processor, keeps the library in the cache, and loads it.

One translation unit with plain C functions: the compiler is called directly, so that neither ninja
nor Python's headers are needed, and a build takes seconds.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

__all__ = [
    "LibraryUnavailable",
    "available",
    "build_library",
    "library",
    "library_folder",
    "load_library",
]

INTERFACE = 1
SOURCES = Path(__file__).parent
NAME = "operators.so"
SEAL = "operators.sha256"
LIMIT_S = 600.0
ABANDONED_S = 24 * 3600.0
TRIES = 3

Command = list[str]


class LibraryUnavailable(ValueError):
    """The C++ operators cannot run here: no compiler, a failed build or an unusable cache."""


def available() -> tuple[bool, str]:
    """Whether the C++ operators can run, and why (not); compiles them at the first call.

    The answer holds for the life of the process.
    """
    found = _outcome()
    if isinstance(found, str):
        return False, found
    threads = "" if found.flyball_has_threads() else ", on one thread: built without OpenMP"
    return True, f"C++ operators, {found.flyball_lanes()} floats a vector{threads}"


def library() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        LibraryUnavailable: it cannot be had; the message says why.
    """
    found = _outcome()
    if isinstance(found, str):
        raise LibraryUnavailable(f"The C++ operators cannot run: {found}.")
    return found


def library_folder(flags: Sequence[str] = ()) -> Path:
    """Where the library for this processor, these sources, torch and Python is kept.

    In $FLYBALL_CACHE/kernels, else in kernels/ of the user's cache folder.

    Args:
        flags: of the compiler, besides the usual ones.
    """
    given = os.environ.get("FLYBALL_CACHE")
    users = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    base = Path(given) if given else Path(users) / "flyball"
    parts = [
        *(path.read_text() for path in sorted(SOURCES.glob("*.h"))),
        (SOURCES / "operators.cpp").read_text(),
        repr(_flags(flags, threads=True)),
        str(torch.__version__),
        torch.backends.cpu.get_cpu_capability(),
        _processor(),
        platform.python_version(),
    ]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return base.expanduser().absolute() / "kernels" / f"cpu-{key}"


def build_library(flags: Sequence[str] = ()) -> Path:
    """Compiles the library unless a whole one is in the cache.

    It is built in a folder of its own that is renamed when it is whole: neither a second process
    nor a kill leaves half a library behind.

    Args:
        flags: of the compiler, besides the usual ones.

    Raises:
        LibraryUnavailable: there is no compiler, it failed, or the cache cannot be written.
    """
    folder = library_folder(flags)
    if _is_whole(folder):
        return folder / NAME
    compiler = _compiler()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder.parent)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as name:
            built = Path(name) / "library"
            built.mkdir()
            _compile(compiler, flags, built / NAME)
            (built / SEAL).write_text(_digest(built / NAME))
            _publish(built, folder)
    except OSError as error:
        raise LibraryUnavailable(
            f"the library could not be kept in {folder}: {error}. Make that folder writable, or "
            "name another with FLYBALL_CACHE"
        ) from error
    return folder / NAME


def load_library(flags: Sequence[str] = ()) -> ctypes.CDLL:
    """Loads the library, compiled before where the cache has none; a broken one is rebuilt once.

    Args:
        flags: of the compiler, besides the usual ones.

    Raises:
        LibraryUnavailable: it cannot be built or loaded; the message says why.
    """
    path = build_library(flags)
    try:
        return _load(path)
    except OSError:
        shutil.rmtree(path.parent, ignore_errors=True)
    try:
        return _load(build_library(flags))
    except OSError as error:
        raise LibraryUnavailable(
            f"the library in {path.parent}, just rebuilt, cannot be loaded: {error}. Delete that "
            "folder, and set CXX to the compiler of this Python"
        ) from error


@cache
def _outcome() -> ctypes.CDLL | str:
    try:
        return load_library()
    except LibraryUnavailable as error:
        return str(error)


def _load(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    try:
        interface = found.flyball_interface()
    except AttributeError as error:
        raise OSError(f"{path} is not a library of flyball") from error
    if interface != INTERFACE:
        raise OSError(f"{path} has interface {interface}, not {INTERFACE}")
    return found


def _publish(built: Path, folder: Path) -> None:
    """Gives what was built its name, unless another process was first with a whole one."""
    for attempt in range(TRIES):
        try:
            built.rename(folder)
            return
        except OSError:
            if _is_whole(folder):
                return
            if attempt == TRIES - 1:
                raise
        with suppress(FileNotFoundError):  # a broken one: out of the way
            folder.rename(built.with_name(f"broken-{attempt}"))


def _is_whole(folder: Path) -> bool:
    """Whether the library is the one that was built: loading a cut one would end the process."""
    try:
        return (folder / SEAL).read_text() == _digest(folder / NAME)
    except OSError:
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _compiler() -> Command:
    named = os.environ.get("CXX")
    candidates = [named] if named else ["c++", "g++", "clang++"]
    for candidate in candidates:
        command = shlex.split(candidate)
        found = shutil.which(command[0]) if command else None
        if found:
            return [found, *command[1:]]
    missing = f"CXX names {named}, which is" if named else "c++, g++ and clang++ are"
    raise LibraryUnavailable(
        f"no C++ compiler was found: {missing} not there. Install g++ or clang++, or set CXX"
    )


def _compile(compiler: Command, flags: Sequence[str], target: Path) -> None:
    errors = ""
    for threads in (True, False):  # a compiler may come without OpenMP
        command = [
            *compiler,
            *_flags(flags, threads),
            str(SOURCES / "operators.cpp"),
            "-o",
            str(target),
            *_linked(),
        ]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
        except subprocess.TimeoutExpired as error:
            raise LibraryUnavailable(f"{compiler[0]} ran for over {LIMIT_S:.0f} s") from error
        if ran.returncode == 0:
            return
        errors = errors or ran.stderr
    first = next((line for line in errors.splitlines() if "error" in line), errors.strip()[-300:])
    raise LibraryUnavailable(
        f"{compiler[0]} could not compile the C++ operators: {first}. Set CXX to another compiler"
    )


def _flags(flags: Sequence[str], threads: bool) -> Command:
    native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    return [
        "-std=c++20",
        "-O3",
        native,
        # Contraction is the same in every tile; -ffast-math would reorder sums.
        "-ffp-contract=fast",
        "-fno-math-errno",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
        *(["-fopenmp"] if threads else []),
        *flags,
    ]


def _linked() -> Command:
    torch_folder = Path(torch.__file__).parent
    command = [f"-I{torch_folder / 'include'}"]
    if sys.platform == "darwin":
        return [*command, "-undefined", "dynamic_lookup"]
    # No path of torch is written into the library: importing torch has loaded these already.
    return [*command, f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu"]


@cache
def _processor() -> str:
    """What -march=native depends on: a cache may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    found = {line for line in lines if line.startswith(wanted)}
    return "\n".join([platform.machine(), *sorted(found)])


def _remove_abandoned(folder: Path) -> None:
    """Removes what builds that were killed long ago have left."""
    for left in folder.glob(".building-*"):
        try:
            is_old = time.time() - left.stat().st_mtime > ABANDONED_S
        except FileNotFoundError:
            continue
        if is_old:
            shutil.rmtree(left, ignore_errors=True)
