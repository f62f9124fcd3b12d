"""Where examples come from: labelled images and texts of many formats, divided, checked and cached."""

from mapmerge_core.tasks.datasets.base import Images
from mapmerge_core.tasks.datasets.cache import cache_folder, cached_inputs
from mapmerge_core.tasks.datasets.images import ImageDataset, open_images, preview
from mapmerge_core.tasks.datasets.templates import shipped_class_names, shipped_templates
from mapmerge_core.tasks.datasets.texts import TextDataset, open_texts, text_preview

__all__ = [
    "ImageDataset",
    "Images",
    "TextDataset",
    "cache_folder",
    "cached_inputs",
    "open_images",
    "open_texts",
    "preview",
    "shipped_class_names",
    "shipped_templates",
    "text_preview",
]
