"""The diffusion process: noise schedule and grid, the formulas between x_0, eps and v, and the step rules."""
