"""One network per file. Every denoiser is called as network(x, t, labels, train=False)."""
from dipddpm_jax.networks.attention_unet import AttentionUNet as AttentionUNet
from dipddpm_jax.networks.context_unet import ContextUnet as ContextUnet
from dipddpm_jax.networks.conv_stack import ConvStack as ConvStack
from dipddpm_jax.networks.deep_decoder import DeepDecoder as DeepDecoder
from dipddpm_jax.networks.residual_denoiser import ResidualDenoiser as ResidualDenoiser
from dipddpm_jax.networks.residual_denoiser import TwoConvs as TwoConvs
from dipddpm_jax.networks.skip_net import SkipNet as SkipNet
from dipddpm_jax.networks.small_unet import SmallUNet as SmallUNet
from dipddpm_jax.networks.unet import UNet as UNet
