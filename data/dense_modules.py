"""The data modules of detection and segmentation that a recipe names, and how they vary pictures."""

from .augment import Albumented, Colour, Fit, LargeScaleJitter, SemanticCrop, ShortestSide
from .dense_images import DenseImages
from .detection_modules import CocoData, DrawnData, LooseData, PennFudanData, VocData
from .segmentation_modules import Ade20kData, CityscapesData, SegmentationData

__all__ = [
    "Ade20kData",
    "Albumented",
    "CityscapesData",
    "CocoData",
    "Colour",
    "DenseImages",
    "DrawnData",
    "Fit",
    "LargeScaleJitter",
    "LooseData",
    "PennFudanData",
    "SegmentationData",
    "SemanticCrop",
    "ShortestSide",
    "VocData",
]
