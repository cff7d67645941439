"""Draws pictures from a trained model: python sample.py --help."""
from dipddpm_jax.commands.ends import guarded

if __name__ == "__main__":
    with guarded():  # from here on an interruption is one line
        from dipddpm_jax.commands.cli import sample_main

        sample_main()
