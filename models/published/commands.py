"""``python -m minnl import`` and ``python -m minnl export``."""

import ast
from pathlib import Path

from models.published.exporting import export_file
from models.published.importing import import_file


def import_(given):
    """Run the import of a command line, print its report, and return the exit status."""
    changes = dict(assignment(text) for text in given.set)
    classes = None
    if given.classes is not None:
        try:
            classes = [line.strip() for line in Path(given.classes).read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--classes: {given.classes} cannot be read: {error}") from None
    _, report = import_file(given.file, given.to, given.model, given.source, changes, classes)
    print(report.text(given.names))
    print(f"written    {given.to}")
    return 0


def export_(given):
    """Run the export of a command line, print what to set there, and return the exit status."""
    settings = export_file(given.checkpoint, given.to, given.format)
    print(f"written    {given.to}, names and layout of {given.format}")
    print("to run it there, set\n  " + "\n  ".join(settings) if settings else "to run it there, build c2d_r50")
    return 0


def assignment(text):
    """'FIELD=VALUE' as (field, value); a value that is no Python literal is a text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set takes FIELD=VALUE, such as pool2_frames=1, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
