"""Where a deep image prior and a diffusion model meet, one method a file."""
