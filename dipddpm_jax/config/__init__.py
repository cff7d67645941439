"""What can be asked for: frozen dataclasses and presets, in plain Python, parsed before JAX is imported."""
