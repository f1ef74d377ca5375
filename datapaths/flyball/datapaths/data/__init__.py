"""Sets of images and clips in four splits: scikit-learn's digits, still and in motion, CIFAR-10,
ImageNet, 20BN-Jester, people with key points (drawn, or MPII's), and any folder or archive of class
folders; mapped from a cache or streamed.
"""

from flyball.datapaths.data.config import DEFAULT_FRACTIONS, DataConfig
from flyball.datapaths.data.image_set import ImageSet, describe
from flyball.datapaths.data.load import load_images
from flyball.datapaths.data.streamed import StreamedPixels

__all__ = [
    "DEFAULT_FRACTIONS",
    "DataConfig",
    "ImageSet",
    "StreamedPixels",
    "describe",
    "load_images",
]
