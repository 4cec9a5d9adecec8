"""Wan 2.2 (https://github.com/Wan-Video/Wan2.2): a transformer over all tokens of a clip."""
