"""How a convolution is computed: `conv` and `conv_transpose` are all that the networks know.

`trilinear` has both and their derivatives: plain `lax.conv` on accelerators; on a CPU, `cpu` chooses a form by what
`cost` says that it pays: `layouts` rearranges pixels, `winograd` takes fewer products, `bands` shares the rows of one
large picture between devices. `primitives` tells JAX how such operations are differentiated and mapped over.
"""
from dipddpm_jax.convolution.trilinear import conv, conv_transpose

__all__ = ["conv", "conv_transpose"]
