"""The recipe that made the demo model: the only part of `weights` that knows networks."""
