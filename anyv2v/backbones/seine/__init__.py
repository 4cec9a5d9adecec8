"""SEINE (arXiv 2310.20700), a network that continues a masked video, here its first frame."""
