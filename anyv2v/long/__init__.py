"""Clips longer than a model's window, inverted and edited window by window."""
