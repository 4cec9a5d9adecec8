"""Stable Diffusion 1.x, a text-to-image latent diffusion model (arXiv 2112.10752), and adapters."""
