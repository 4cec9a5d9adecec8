"""Layers that networks are built of, on channels-last features."""
