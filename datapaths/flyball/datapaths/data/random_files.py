"""Files of a folder or archive by name, in any order, from any thread and after pickling."""

import os
import threading
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flyball.datapaths.data.containers import Container
from flyball.datapaths.errors import DataError

__all__ = ["Entries", "Files", "FolderFiles", "TarFiles", "ZipFiles", "open_files", "opened"]

Name = tuple[str, ...]


class Files(Protocol):
    """What reads one file of a source."""

    def read(self, name: str) -> bytes:
        """The file's bytes.

        Raises:
            DataError: it is gone, cannot be read or is not whole.
        """
        ...

    def where(self, name: str) -> str:
        """What an error calls the file."""
        ...


class Entries:
    """What a container holds, by name.

    Attributes:
        sizes: bytes of every wanted file, by its name.
        folders: names of all folders, those that only files imply too.
    """

    def __init__(self, container: Container, wanted: Callable[[Name], bool]) -> None:
        self.sizes: dict[Name, int] = {}
        self.offsets: dict[Name, int] = {}
        self.folders: set[Name] = set()
        above: Name = ()
        for member in container.members(wanted, read=False):
            here = member.name if member.is_folder else member.name[:-1]
            if here != above:
                self.folders.update(here[:depth] for depth in range(1, len(here) + 1))
                above = here
            if member.is_folder or not wanted(member.name):
                continue
            if member.name in self.sizes:
                raise DataError(
                    f"Every file of an archive has its own name; {'/'.join(member.name)} in "
                    f"{container.path} is there twice. Pack it again."
                )
            self.sizes[member.name] = member.size
            if member.offset is not None:
                self.offsets[member.name] = member.offset


class FolderFiles:
    """Files below a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> bytes:
        """See `Files`."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise _unreadable(self.where(name), error) from error

    def where(self, name: str) -> str:
        """See `Files`."""
        return f"{name} in {self.path}"


class TarFiles:
    """Files of a tar that is not compressed, read where they lie.

    Args:
        path: of the tar.
        names: sorted, UTF-8; bytes (M,).
        spans: offset and length of each file; int64 (M, 2).
    """

    def __init__(self, path: Path, names: NDArray[np.bytes_], spans: NDArray[np.int64]) -> None:
        self.path, self._names, self._spans = path, names, spans
        self._opened: int | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return TarFiles, (self.path, self._names, self._spans)

    def read(self, name: str) -> bytes:
        """See `Files`."""
        key = name.encode()
        row = int(np.searchsorted(self._names, np.bytes_(key)))
        if row == len(self._names) or self._names[row] != key:
            raise _unreadable(self.where(name), KeyError(name))
        offset, length = (int(value) for value in self._spans[row])
        try:
            data = os.pread(self._file(), length, offset)
        except OSError as error:
            raise _unreadable(self.where(name), error) from error
        if len(data) != length:
            raise _unreadable(self.where(name), EOFError(f"{len(data)} of {length} bytes"))
        return data

    def where(self, name: str) -> str:
        """See `Files`."""
        return f"{name} in {self.path}"

    def _file(self) -> int:
        """One descriptor; reads by offset may share it among threads and forked processes."""
        with self._lock:
            if self._opened is None:
                self._opened = os.open(self.path, os.O_RDONLY)
                weakref.finalize(self, os.close, self._opened)
            return self._opened


class ZipFiles:
    """Files of a zip."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[zipfile.ZipFile, int] | None = None
        self._names: dict[str, str] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return ZipFiles, (self.path,)

    def read(self, name: str) -> bytes:
        """See `Files`."""
        try:
            archive = self._archive()
            return archive.read(self._names[name])
        except Exception as error:  # a broken zip raises whatever its bytes happen to ask for
            raise _unreadable(self.where(name), error) from error

    def where(self, name: str) -> str:
        """See `Files`."""
        return f"{name} in {self.path}"

    def _archive(self) -> zipfile.ZipFile:
        """One a process: after a fork a shared descriptor would move under the other's reads."""
        with self._lock:
            if self._opened is None or self._opened[1] != os.getpid():
                archive = zipfile.ZipFile(self.path)
                self._names = {
                    "/".join(part for part in member.split("/") if part not in ("", ".")): member
                    for member in archive.namelist()
                }
                self._opened = archive, os.getpid()
            return self._opened[0]


def open_files(container: Container, entries: Entries) -> Files:
    """Random access to a container's wanted files.

    Raises:
        DataError: it is a compressed tar, or a file of a tar is stored sparsely.
    """
    if container.kind == "folder":
        return FolderFiles(container.path)
    if container.kind == "zip":
        return ZipFiles(container.path)
    if container.is_compressed:
        raise DataError(
            f"A compressed tar can be read from its start only; {container.path} is one. Unpack "
            "it, pack it as .zip or .tar, or hold it decoded with --set data.access=cache."
        )
    sparse = next((name for name in entries.sizes if name not in entries.offsets), None)
    if sparse is not None:
        raise DataError(
            f"Images in an archive must be plain files; {'/'.join(sparse)} in {container.path} is "
            "stored sparsely. Pack it again without --sparse."
        )
    encoded = {"/".join(name).encode(): name for name in entries.sizes}
    names = np.array(sorted(encoded) or [b""], np.bytes_)
    spans = [(entries.offsets[encoded[n]], entries.sizes[encoded[n]]) for n in sorted(encoded)]
    return TarFiles(container.path, names, np.array(spans, np.int64).reshape(-1, 2))


def opened(files: Files, name: str) -> IO[bytes] | bytes:
    """A file to read the head of: opened where it is a plain file, else its bytes."""
    if not isinstance(files, FolderFiles):
        return files.read(name)
    try:
        return (files.path / name).open("rb")
    except OSError as error:
        raise _unreadable(files.where(name), error) from error


def _unreadable(where: str, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or error or type(error).__name__
    return DataError(
        f"A data set must stay as it is while it is read; {where} cannot be read ({reason}). "
        "Put it back, or start again."
    )
