"""PASCAL VOC as it is on disk: JPEGImages, Annotations and ImageSets/Main under VOCdevkit/VOC2007.

Source: Everingham et al., The PASCAL VOC Challenge 2007, development kit.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

from flyball.datapaths.detection.annotations import Annotation, Faults, NamedBox, checked_boxes
from flyball.datapaths.detection.config import DetectionDataConfig
from flyball.datapaths.detection.survey import Name, Sample, Source, Survey
from flyball.datapaths.errors import DataError

__all__ = ["VOC_CLASSES", "is_voc_text", "read_voc"]

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

_TRAINVAL = ("ImageSets", "Main", "trainval.txt")
_TEST = ("ImageSets", "Main", "test.txt")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def is_voc_text(name: Name) -> bool:
    """Whether a file is one of the annotations or lists of images."""
    return name[-3:] in (_TRAINVAL, _TEST) or (
        name[-2:-1] == ("Annotations",) and name[-1].endswith(".xml")
    )


def read_voc(found: Survey, config: DetectionDataConfig, faults: Faults) -> Source:
    """The images that trainval.txt and test.txt list, in that order, with their boxes.

    Args:
        found: what the folder or archive holds.
        config: class names, limit, and what to do with boxes over the edge.
        faults: takes the samples that cannot be used, or stops at the first.

    Raises:
        DataError: the layout is not VOC's, an image is listed twice, or a sample has a fault.
    """
    base = _base_of(found)
    classes = config.classes or VOC_CLASSES
    listed = [(part, _ids(found, (*base, *part))[: config.limit]) for part in (_TRAINVAL, _TEST)]
    samples: list[Sample] = []
    seen: set[str] = set()
    for part, ids in listed:
        for identifier in ids:
            if identifier in seen:
                raise DataError(
                    f"An image is listed once; {identifier!r} comes again in "
                    f"{found.where((*base, *part))}. Remove that line."
                )
            seen.add(identifier)
            with faults.sample():
                image = (*base, "JPEGImages", f"{identifier}.jpg")
                boxes = _annotation(found, base, identifier, image, classes, config.clip_boxes)
                samples.append(Sample(image, boxes, config.use_test_part and part == _TEST))
    return Source(tuple(classes), tuple(samples))


def _base_of(found: Survey) -> Name:
    bases = sorted(name[:-3] for name in found.texts if name[-3:] == _TRAINVAL)
    if not bases:
        raise DataError(
            "A VOC data set lists its images in VOC2007/ImageSets/Main/trainval.txt; "
            f"{found.container.path} holds no such file. Name the folder VOCdevkit with "
            "--set data.root=FOLDER, or give --set data.format=yolo."
        )
    if len(bases) > 1:
        raise DataError(
            f"One VOC year is read at a time; {found.container.path} holds "
            f"{' and '.join('/'.join(base) for base in bases)}. Name the folder of one year with "
            "--set data.root=FOLDER."
        )
    return bases[0]


def _ids(found: Survey, name: Name) -> list[str]:
    if name not in found.texts:
        return []
    return [line.split()[0] for line in found.lines(name) if line.strip()]


def _annotation(
    found: Survey, base: Name, identifier: str, image: Name, classes: Sequence[str], clip: bool
) -> Annotation:
    header = found.image(image)
    file = (*base, "Annotations", f"{identifier}.xml")
    where = found.where(file)
    if file not in found.texts:
        raise DataError(
            f"Every listed image has its annotation; there is no {where}. "
            "Fetch it, or remove the image from its list."
        )
    root = _parsed(found.texts[file], where)
    said = [_number(root, f"size/{side}", where, default=0.0) for side in ("width", "height")]
    if all(said) and said != [header.width, header.height]:
        raise DataError(
            f"An annotation gives its image's size; {where} says {said[0]:g}x{said[1]:g}, the "
            f"image has {header.width}x{header.height}. Its boxes belong to another image: "
            "correct or remove it."
        )
    rows = [
        _box(element, f"object {number} of {where}", classes)
        for number, element in enumerate(root.findall("object"), start=1)
    ]
    return checked_boxes(rows, header.width, header.height, clip=clip)


def _box(element: ElementTree.Element, where: str, classes: Sequence[str]) -> NamedBox:
    name = (element.findtext("name") or "").strip()
    if name not in classes:
        raise DataError(
            f"Every box has one of {len(classes)} class names; {where} has {name!r}, not one of "
            f"{', '.join(classes)}. Give the data set's own names with --set data.classes=A,B."
        )
    x1, y1, x2, y2 = (_number(element, f"bndbox/{corner}", where) for corner in _CORNERS)
    is_difficult = _number(element, "difficult", where, default=0.0) != 0.0
    # pixels count from 1 and both corners belong to the box
    return NamedBox(where, classes.index(name), (x1 - 1.0, y1 - 1.0, x2, y2), is_difficult)


def _number(
    element: ElementTree.Element, path: str, where: str, *, default: float | None = None
) -> float:
    text = element.findtext(path)
    if text is None and default is not None:
        return default
    try:
        return float(text or "")
    except ValueError as error:
        raise DataError(
            f"<{path}> is a number; {where} has {text!r}. Correct or remove that object."
        ) from error


class _PlainTree(ElementTree.TreeBuilder):
    """Builds the tree of a document without a type: a type can define what expands without end."""

    def doctype(self, name: str, *_: str | None) -> None:
        raise DataError(f"it declares a document type, {name!r}, and none is read")


def _parsed(data: bytes, where: str) -> ElementTree.Element:
    try:
        parser = ElementTree.XMLParser(target=_PlainTree())
        parser.feed(data)
        root: ElementTree.Element = parser.close()
    except (ElementTree.ParseError, DataError, ValueError, LookupError) as error:
        raise DataError(
            f"An annotation is plain XML; {where} is not ({error}). Correct or remove that file."
        ) from error
    return root
