"""Noise levels, sampling and inversion, independent of any network."""
