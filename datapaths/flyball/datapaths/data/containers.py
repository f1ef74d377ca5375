"""Folders, tars and zips as one thing: a stream of members. Nothing is ever unpacked to disk."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from flyball.datapaths.errors import DataError

__all__ = ["Container", "Member", "open_container"]

_COMPRESSIONS: dict[bytes, Callable[[IO[bytes]], io.BufferedIOBase]] = {
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
}
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,  # zipfile: the member is encrypted
    NotImplementedError,  # zipfile: a compression it does not know
)
_BUFFER = 1 << 20


@dataclass(frozen=True)
class Member:
    """A visible file or folder of a container.

    Attributes:
        name: components below the container's root; never empty, absolute, ".", ".." or hidden.
        is_folder: it is a folder.
        data: the file's bytes where they were wanted, else None.
        size: of the file, in bytes; 0 of a folder.
        offset: where the file's bytes start in a tar that is not compressed, else None.
        position: how many of the container's `size` bytes were gone through, for progress.
    """

    name: tuple[str, ...]
    is_folder: bool
    data: bytes | None
    size: int
    offset: int | None
    position: int


@dataclass(frozen=True)
class Container:
    """A folder or an archive.

    Attributes:
        path: where it is.
        kind: what it is.
        state: (name, bytes, mtime in ns) of each file: a cheap sign that nothing has changed.
        size: bytes in all, of the archive itself or of the folder's files.
    """

    path: Path
    kind: Literal["folder", "tar", "zip"]
    state: tuple[tuple[str, int, int], ...]
    size: int

    @property
    def is_compressed(self) -> bool:
        """Whether the members can be read one after the other only: a compressed tar."""
        if self.kind != "tar":
            return False
        with self.path.open("rb") as file:
            return file.read(6).startswith(tuple(_COMPRESSIONS))

    def members(
        self, wanted: Callable[[tuple[str, ...]], bool], *, read: bool = True
    ) -> Iterator[Member]:
        """Goes through all members, a folder's in sorted order and an archive's in its own.

        Args:
            wanted: whether the file of that name is needed; it must then be a plain file.
            read: whether needed files are read, or only named.

        Raises:
            DataError: the archive is corrupt or truncated, or a file cannot be read.
        """
        walk = {"folder": self._folder, "tar": _tar_members, "zip": _zip_members}[self.kind]
        try:
            yield from walk(self.path, wanted, read)
        except _BROKEN as error:
            what = "folder" if self.kind == "folder" else "archive"
            raise DataError(
                f"A data {what} must be whole and readable; {self.path} is truncated, corrupt or "
                f"not readable ({error or type(error).__name__}). Fetch or pack it again."
            ) from error

    def _folder(
        self, root: Path, wanted: Callable[[tuple[str, ...]], bool], read: bool
    ) -> Iterator[Member]:
        position = 0
        for name, size, _ in self.state:
            parts = tuple(name.rstrip("/").split("/"))
            is_folder = name.endswith("/")
            take = read and not is_folder and wanted(parts)
            position += size
            data = root.joinpath(*parts).read_bytes() if take else None
            yield Member(parts, is_folder, data, size, None, position)


def open_container(root: str) -> Container:
    """Finds out what `root` is, without going through it.

    Raises:
        DataError: there is nothing, or neither a folder nor a tar nor a zip.
    """
    path = Path(root).expanduser()
    try:
        if path.is_dir():
            state = tuple(_walk(path, "", set()))
            return Container(path, "folder", state, sum(size for _, size, _ in state))
        status = path.stat()
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError as error:
        raise DataError(
            f"The data set's root must exist; there is no {path}. Name the folder or archive that "
            "holds the images with --set data.root=FILE."
        ) from error
    except OSError as error:
        raise DataError(
            f"The data set's root must be readable; {path} is not ({error.strerror}). "
            "Change its permissions, or name another with --set data.root=FILE."
        ) from error
    kind: Literal["tar", "zip"]
    if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06"):
        kind = "zip"
    elif head.startswith(tuple(_COMPRESSIONS)) or head[257:262] == b"ustar":
        kind = "tar"
    else:
        raise DataError(
            "The data set's root must be a folder, or a .tar, .tar.gz, .tar.bz2, .tar.xz or .zip "
            f"archive; {path} ({status.st_size} bytes) is none of these by its first bytes. "
            "Pack the class folders into one, or name another file with --set data.root=FILE."
        )
    return Container(path, kind, (("", status.st_size, status.st_mtime_ns),), status.st_size)


def _walk(folder: Path, prefix: str, above: set[tuple[int, int]]) -> Iterator[tuple[str, int, int]]:
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise DataError(
            f"A data folder must not contain itself; {folder} is a link to a folder above it. "
            "Remove the link."
        )
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if _is_hidden(entry.name):
            continue
        if entry.is_dir():
            yield f"{prefix}{entry.name}/", 0, 0
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", above | {here})
        elif entry.is_file():
            status = entry.stat()
            yield f"{prefix}{entry.name}", status.st_size, status.st_mtime_ns
        elif entry.is_symlink():
            raise DataError(
                f"Links in a data folder must lead somewhere; {folder / entry.name} does not. "
                "Fetch what it stands for, or remove it."
            )


def _tar_members(
    path: Path, wanted: Callable[[tuple[str, ...]], bool], read: bool
) -> Iterator[Member]:
    with path.open("rb") as raw:
        head = raw.read(6)
        raw.seek(0)
        stream: io.BufferedIOBase = raw
        for magic, decompress in _COMPRESSIONS.items():
            if head.startswith(magic):
                stream = io.BufferedReader(decompress(raw), _BUFFER)
        with tarfile.open(fileobj=stream, mode="r:", tarinfo=_StrictTarInfo) as tar:
            while (member := tar.next()) is not None:
                # else it keeps every header of a large archive
                tar.members.clear()  # type: ignore[attr-defined]
                name = _visible(path, member.name)
                if not name:
                    continue
                take = not member.isdir() and wanted(name)
                if take and not member.isreg():
                    raise DataError(
                        f"Images in an archive must be plain files; {member.name} in {path} is a "
                        "link. Pack it again with links resolved (tar --dereference "
                        "--hard-dereference)."
                    )
                opened = tar.extractfile(member) if take and read else None
                data = opened.read() if opened is not None else None
                offset = None if stream is not raw or member.issparse() else member.offset_data
                if member.isdir() or member.isreg():
                    yield Member(name, member.isdir(), data, member.size, offset, raw.tell())
        while stream.read(_BUFFER):  # to the end, where the checksums are
            pass


class _StrictTarInfo(tarfile.TarInfo):
    """Headers as tarfile reads them, but what it takes for a quiet end of the archive is an error.

    A tar ends with a block of zeros; tarfile also stops, without a word, where the bytes run out
    between two members or where a header is damaged.
    """

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_StrictTarInfo":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tarfile_.offset}") from error


def _zip_members(
    path: Path, wanted: Callable[[tuple[str, ...]], bool], read: bool
) -> Iterator[Member]:
    position = 0
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            position += member.compress_size
            name = _visible(path, member.filename)
            if name:
                take = read and not member.is_dir() and wanted(name)
                data = archive.read(member) if take else None
                yield Member(name, member.is_dir(), data, member.file_size, None, position)


def _visible(path: Path, name: str) -> tuple[str, ...]:
    """The components of a member's name, () where it is hidden or the root itself."""
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise DataError(
            f"Members of an archive must lie within it; {path} holds {name!r}. Pack it again."
        )
    return () if any(_is_hidden(part) for part in parts) else parts


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
