"""Trains a diffusion model: python train.py --help."""
from dipddpm_jax.commands.ends import guarded

if __name__ == "__main__":
    with guarded():  # from here on an interruption is one line
        from dipddpm_jax.commands.cli import train_main

        train_main()
