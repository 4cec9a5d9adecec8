"""Metrics of clips: pure functions of frames, masks and features, each by its definition."""
