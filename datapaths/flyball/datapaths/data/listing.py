"""A source whose samples can be read one by one: known by names and sizes, not yet decoded.

It is either streamed or decoded into the cache; both read the same samples through the same reader.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flyball.datapaths.data.plan import Part, Pixels, Plan, labels_of
from flyball.datapaths.data.samples import Reader
from flyball.datapaths.data.streamed import StreamedPixels
from flyball.datapaths.errors import DataError
from flyball.datapaths.files import fingerprint_of
from flyball.datapaths.progress import Progress, Report

__all__ = ["Listing", "plan_of"]

_CHUNK = 256  # samples decoded into the cache at a time


@dataclass(frozen=True)
class Listing:
    """What a source holds.

    Attributes:
        classes: class names.
        parts: in the order of the rows.
        shape: (C, H, W) or (C, T, H, W) of every sample as read.
        reader: of the samples, in the order of the rows.
        token: digest of the samples' names and sizes in bytes, and of what decodes them; neither
            their path nor their dates.
        state: digest of what shows that a file was changed: its time.
        where: the source, for messages.
        skipped: names of samples that were left out.
    """

    classes: tuple[str, ...]
    parts: tuple[Part, ...]
    shape: tuple[int, ...]
    reader: Reader
    token: str
    state: str
    where: Path
    skipped: tuple[str, ...] = ()

    @property
    def decoded_bytes(self) -> int:
        """Of all samples."""
        return len(self.reader) * int(np.prod(self.shape, dtype=np.int64))

    def without(self, rows: Iterable[int]) -> "Listing":
        """The listing less some rows, which are noted as skipped.

        Raises:
            DataError: none is left.
        """
        left_out = np.zeros(len(self.reader), np.bool_)
        left_out[list(rows)] = True
        if left_out.all():
            raise DataError(
                f"A data set holds samples that decode; of the {len(left_out)} of {self.where} "
                "none does. Fetch it again."
            )
        labels, kept = labels_of(self.parts), ~left_out
        parts: list[Part] = []
        start = 0
        for part in self.parts:
            own = slice(start, start + sum(part.counts))
            counts = np.bincount(labels[own][kept[own]], minlength=len(self.classes))
            parts.append(replace(part, counts=tuple(counts.tolist())))
            start = own.stop
        skipped = tuple(self.reader.name(row) for row in np.flatnonzero(left_out).tolist())
        return replace(
            self,
            parts=tuple(parts),
            reader=self.reader.take(np.flatnonzero(kept).astype(np.int64)),
            token=fingerprint_of(self.token, "without", skipped),
            skipped=(*self.skipped, *skipped),
        )


def plan_of(listing: Listing, workers: int) -> Plan:
    """How the cache reads a listing."""

    def read(report: Report) -> Pixels:
        pixels = StreamedPixels(listing.reader, listing.shape, workers)
        for start in range(0, len(pixels), _CHUNK):
            rows = slice(start, min(start + _CHUNK, len(pixels)))
            yield from enumerate(pixels[rows], start)
            report(Progress("decode", rows.stop, len(pixels)))

    return Plan(
        classes=listing.classes,
        parts=listing.parts,
        shape=listing.shape,
        content=fingerprint_of("listing", listing.token, listing.state),
        read=read,
        skipped=listing.skipped,
    )
