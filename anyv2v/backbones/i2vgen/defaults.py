"""The settings with which AnyV2V's original code runs the published weights of I2VGen-XL."""

from __future__ import annotations

NEGATIVE_PROMPT = (
    "Distorted, discontinuous, Ugly, blurry, low resolution, motionless, static, disfigured, "
    "disconnected limbs, Ugly faces, incomplete arms"
)
"""The prompt that guidance leads away from."""

PUBLISHED_SETTINGS = {
    "steps": 50,
    "guidance": {"text": 9.0},
    "negative_prompt": NEGATIVE_PROMPT,
    "injection": {"conv": 0.2, "spatial": 0.2, "temporal": 0.5},
}
"""The settings, as `base.PublishedSettings` describes them."""
