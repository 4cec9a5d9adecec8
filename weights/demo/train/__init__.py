"""The training of the demo model; the only part of `weights` that imports networks."""
