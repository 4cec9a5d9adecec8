"""I2VGen-XL (arXiv 2311.04145), the network that AnyV2V edits with."""
