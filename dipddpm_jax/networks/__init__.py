"""One network per file. Every denoiser is called as network(x, t, labels, train=False)."""
from dipddpm_jax.networks.small_unet import SmallUNet as SmallUNet
