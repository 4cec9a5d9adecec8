"""ConsistI2V (arXiv 2402.04324), an image-to-video network."""
