"""Trains a diffusion model: python train.py --help."""
from dipddpm_jax.cli import train_main

if __name__ == "__main__":
    train_main()
