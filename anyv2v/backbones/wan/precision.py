"""Which parameters of Wan's transformer stay float32 when the network is in half precision."""

from __future__ import annotations

import re

FLOAT32 = re.compile(
    r"(time\.\d|time_projection|out|(.*\.)?norm_(q|k|cross))\.(weight|bias)|(.*\.)?modulation"
)
"""Matches their whole names. The network computes in float32 with them, as the original does: with
the embedding of the time and what is made of it, all norms, and the last layer. To round them would
lose accuracy and save 0.14 of 10 GB."""
