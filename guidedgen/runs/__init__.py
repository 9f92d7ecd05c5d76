"""One run: from a config to a checked job, its samples, its scores and its folder."""
