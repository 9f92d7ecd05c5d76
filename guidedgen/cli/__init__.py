"""The command line: flags and overrides, their checks, help, and what the terminal shows."""
