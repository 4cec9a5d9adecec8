"""Autoencoders, which convert frames to latents and back."""
