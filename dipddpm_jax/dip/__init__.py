"""Deep image priors: one picture, one untrained network. Its public names are here."""
from dipddpm_jax.dip.batches import advance_all, advance_one
from dipddpm_jax.dip.codes import Code, CodeRule, fixed, learned, meshgrid_code, multiscale_code, noise_code, refreshed
from dipddpm_jax.dip.fit import Curves, Dip, DipState, Kept
from dipddpm_jax.dip.problem import DipProblem
from dipddpm_jax.dip.stopping import Evidence, Stopper
from dipddpm_jax.dip.variants import Penalty, autoencode, backtracking, no_penalty, total_variation

__all__ = ["Code", "CodeRule", "Curves", "Dip", "DipProblem", "DipState", "Evidence", "Kept", "Penalty", "Stopper",
           "advance_all", "advance_one", "autoencode", "backtracking", "fixed", "learned", "meshgrid_code",
           "multiscale_code", "no_penalty", "noise_code", "refreshed", "total_variation"]
