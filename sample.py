"""Draws pictures from a trained model: python sample.py --help."""
from dipddpm_jax.commands.cli import sample_main

if __name__ == "__main__":
    sample_main()
