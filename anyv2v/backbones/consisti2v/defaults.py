"""The settings with which AnyV2V's original code runs the published weights of ConsistI2V."""

from __future__ import annotations

from anyv2v.backbones.i2vgen.defaults import NEGATIVE_PROMPT

PUBLISHED_SETTINGS = {
    "steps": 50,
    "guidance": {"text": 35.0, "image": 1.0},
    # the original has one negative prompt for both networks
    "negative_prompt": NEGATIVE_PROMPT,
    "injection": {"conv": 0.2, "spatial": 0.2, "temporal": 0.5},
    "start": 4,
    # an evaluation brings the fixed point of a step less far than where the network predicts v
    "tolerance": 1e-2,
    "evaluations": 4.0,
}
"""The settings, as `base.PublishedSettings` describes them."""
