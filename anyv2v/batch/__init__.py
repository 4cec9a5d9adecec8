"""Many clips with their edits, told by a file, on one machine or many; what is done stays done."""
