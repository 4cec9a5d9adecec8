"""Scores of edited clips, by published definitions."""
