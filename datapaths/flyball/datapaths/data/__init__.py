"""Image sets in four splits: digits, CIFAR-10, any folder or archive of class folders."""

from flyball.datapaths.data.config import DEFAULT_FRACTIONS, DataConfig
from flyball.datapaths.data.image_set import ImageSet, describe
from flyball.datapaths.data.load import load_images

__all__ = ["DEFAULT_FRACTIONS", "DataConfig", "ImageSet", "describe", "load_images"]
