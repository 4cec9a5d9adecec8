"""The settings with which the original code samples from Wan 2.2 TI2V-5B, and where to inject."""

from __future__ import annotations

NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，"
    "最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，"
    "画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)
"""The original's negative prompt (wan/configs/shared_config.py): qualities that a video should not
have, such as still pictures, subtitles, and hands and faces that are drawn badly."""

PUBLISHED_SETTINGS = {
    "steps": 50,
    "guidance": {"text": 5.0},
    "negative_prompt": NEGATIVE_PROMPT,
    # AnyV2V's original code has no Wan: this was found on the small flow model, see
    # docs/flow-injection.md
    "injection": {"map": 0.8, "value": 0.0, "context": 0.0, "hidden": 0.0},
    # of our inversion, measured on fields with a known velocity (bench/README.md) and on that model
    "tolerance": 1e-3,
    "solved_from": 0.17,
    "noise_range": [0.9, 1.2],
}
"""The settings, as `base.PublishedSettings` describes them."""
