"""One paper, one file. A method is a frozen dataclass of its options that maps a Problem to x_0.

Class attributes say what it needs: `guided` (a reward), `differentiates` (a differentiable one), `needs_noise` (a stochastic
scheduler). Costs are in denoiser rows, a classifier-free guidance pair being two, for one sample and T steps.
"""
