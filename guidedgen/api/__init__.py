"""guidedgen from Python, as in a notebook: `guiding` runs what the command line runs, `results` reads what came out."""
