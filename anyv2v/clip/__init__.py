"""CLIP's text and image encoders (Radford et al. 2021), with tokenizer and preprocessing."""
