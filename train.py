"""Trains a diffusion model: python train.py --help."""
from dipddpm_jax.commands.cli import train_main

if __name__ == "__main__":
    train_main()
