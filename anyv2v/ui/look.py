"""The look of the page: a theme whose fonts are those of the system, and a few rules of style."""

from __future__ import annotations

from gradio.themes import Default

FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
MONO = ("ui-monospace", "Consolas", "monospace")

CSS = """
.gradio-container { max-width: 1440px !important; margin: 0 auto; }
#panels > .column { min-width: min(320px, 100%) !important; }
.panel h3 { margin: 0 0 4px; }
.note { font-size: 0.9em; opacity: 0.85; }
.error { color: var(--error-text-color, #b91c1c); }
/* the frames of the demo are small: their pixels are shown as they are */
.pixels img, .pixels video { image-rendering: pixelated; }
.shown video, .shown img { width: 100%; object-fit: contain; }
/* the bar has its own text above it */
#status .progress-text { display: none; }
/* files that were made can be saved, not taken away */
#files .label-clear-button { display: none; }
#command textarea { font-family: ui-monospace, Consolas, monospace; font-size: 0.85em; }
"""
"""Rules for what the theme leaves open."""


def theme() -> Default:
    """Returns the theme of the page, which loads nothing from anywhere."""
    return Default(primary_hue="teal", neutral_hue="slate", font=list(FONTS), font_mono=list(MONO))
