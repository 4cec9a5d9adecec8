"""Autoencoders between frames and latents."""
