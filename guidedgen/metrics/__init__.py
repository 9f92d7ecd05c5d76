"""Metrics: distances between sets of features, CLIP scores per image, and their summaries over prompts."""
