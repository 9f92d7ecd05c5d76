"""What is sampled from: Stable Diffusion folders of any size, and an analytic Gaussian mixture whose score is exact."""
