"""A small model of Wan's architecture, trained on the scenes of the demo model.

It comes with the package.
"""

from pathlib import Path

FOLDER = Path(__file__).parent / "files"
"""The weights folder of the model."""
