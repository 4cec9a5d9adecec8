"""Videos, pictures and masks: reading, writing, and their colors."""
