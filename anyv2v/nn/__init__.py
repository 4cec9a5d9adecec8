"""Layers from which the networks are built; their features are channels-last."""
