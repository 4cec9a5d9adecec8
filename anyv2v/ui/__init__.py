"""The page of `anyv2v ui`: its layout, its server, and what it keeps for each of its users."""
