"""The training of the small flow model."""
