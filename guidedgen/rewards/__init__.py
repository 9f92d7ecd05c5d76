"""Rewards: one scorer, one file. Each returns one number per image, higher is better, for images in [0, 1]."""
