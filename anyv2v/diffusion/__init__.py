"""Noise levels, samplers and inversions; nothing here knows a network."""
