"""Stable Diffusion 1.x: a latent diffusion model of pictures (arXiv 2112.10752)."""
