"""The small model that comes with the package, the scenes it was trained on, and its training."""

from pathlib import Path

FOLDER = Path(__file__).parent / "files"
"""The weights folder of the model, in the format that `anyv2v convert` writes."""
