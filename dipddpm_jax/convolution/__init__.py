"""How a convolution is computed: `conv` and `conv_transpose` are all that the networks know.

Plain `lax.conv` on accelerators. On a CPU, `cpu` chooses a form by what `cost` says that it pays: `layouts` rearranges
pixels, `winograd` takes fewer products, `bands` shares the rows of one large picture between devices.
"""
from dipddpm_jax.convolution.cpu import conv, conv_transpose

__all__ = ["conv", "conv_transpose"]
