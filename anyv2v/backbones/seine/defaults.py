"""The settings with which AnyV2V's original code runs the published weights of SEINE."""

from __future__ import annotations

PUBLISHED_SETTINGS = {
    "steps": 50,
    "guidance": {"text": 4.0},
    "negative_prompt": "",
    "injection": {"conv": 0.2, "spatial": 0.2, "temporal": 0.5, "cross": 0.0},
    # an evaluation brings the fixed point of a step less far than where the network predicts v
    "tolerance": 1e-2,
    "evaluations": 4.0,
}
"""The settings, as `base.PublishedSettings` describes them."""
