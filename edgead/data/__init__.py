"""Categories of images on disk: what is there, in which layout, in which order, and how it is read."""

from edgead.data.category import Category, Sample
from edgead.data.layouts import list_images, open_category
from edgead.data.loading import load_images, load_mask, load_views, prefetch, unclear_masks

__all__ = [
    "Category",
    "Sample",
    "list_images",
    "load_images",
    "load_mask",
    "load_views",
    "open_category",
    "prefetch",
    "unclear_masks",
]
