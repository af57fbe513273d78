"""Weights that others published: read into checkpoints of minnl, and written back under their names.

    model, report = published.import_file("i3d_nonlocal_32x2.pkl", to="nl.safetensors", model="nl_i3d_r50_5")
    published.export_file("nl.safetensors", "nl_for_others.safetensors", "video-nonlocal-net")

Files of others are not trusted: nothing in them is run, and no size in them believed. docs/published.md tells which
files these are and how their networks differ.
"""

from models.published.exporting import export_file
from models.published.importing import described, import_file
from models.published.names import FORMATS

__all__ = ["FORMATS", "described", "export_file", "import_file"]
