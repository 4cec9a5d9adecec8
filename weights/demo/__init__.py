"""The small model that comes with the package, the scenes that it knows, and how it was trained."""

from pathlib import Path

FOLDER = Path(__file__).parent / "files"
"""The model, a folder like any that `anyv2v convert` writes."""
