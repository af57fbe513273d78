"""Weights that other projects published: read into checkpoints of minnl, and written back under their names.

    model, report = published.import_file("i3d_nonlocal_32x2.pkl", to="nl.safetensors", model="nl_i3d_r50_5")
    published.export_file("nl.safetensors", "nl_for_others.safetensors", "video-nonlocal-net")

The files are not trusted: nothing in them is run, and no size in them is believed. docs/published.md lists the files
and says how their networks differ.
"""

from models.published.exporting import export_file
from models.published.importing import described, import_file
from models.published.names import FORMATS

__all__ = ["FORMATS", "described", "export_file", "import_file"]
