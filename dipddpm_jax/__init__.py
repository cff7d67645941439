"""Deep image priors and denoising diffusion in JAX."""
__version__ = "0.1.0"
