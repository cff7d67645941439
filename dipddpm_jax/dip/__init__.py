"""Deep image priors: one picture, one untrained network. The public names of `dip.fit` are here too."""
from dipddpm_jax.dip.fit import *  # noqa: F403
