"""A small model of Wan's architecture, trained on the scenes of the demo model."""
