"""I2VGen-XL (arXiv 2311.04145), an image-to-video network."""
