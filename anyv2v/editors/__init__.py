"""Stage one: what edits a picture, the first frame of a video, before the video follows it."""
