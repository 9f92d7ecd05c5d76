"""One paper, one file. A method is a frozen dataclass of its options that maps a Problem to x_0; `needs` says what it needs.

Costs are per sample, of T steps: `rows` are denoiser rows, a classifier-free guidance pair being two.
"""
