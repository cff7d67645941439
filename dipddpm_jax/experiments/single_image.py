"""Report 000: a DDPM trained on one handwritten digit, or on a DIP's picture of it, at the lower half of the times.

Controls: an all-black picture, equal numbers of steps, chains that begin with as much noise as the network was
trained on, both readings of the shortened table, several digits, weights and samples.
"""

import numpy as np

from dipddpm_jax.experiments.rules import above, alike, negated
from dipddpm_jax.experiments.single_image_runs import BINS, Setting, Size, measure, program
from dipddpm_jax.experiments.tables import (
    Claim,
    Column,
    Finding,
    Plot,
    Report,
    Results,
    Row,
    Table,
    Together,
)

A, B, C, D = ("A: DIP's picture, 3000 steps", "B: the digit, 5000 steps", "C: as A, table of 501",
              "D: C once more, another seed")
B3, A5, FIRST, N1 = ("B with 3000 steps", "A with 5000 steps", "as A, the first 501 entries of 1000",
                     "N1: the digit, all 1000 times, 5000 steps")
ROWS = (
    Row(N1, Setting(times=1000)), Row(A, Setting("DIP", 3000), {"psnr": 8.108132618880658}),
    Row(B, Setting(), {"psnr": 1.3431491336455483}),
    Row(C, Setting("DIP", 3000, table="501"), {"psnr": 7.7997909067912}),
    Row(D, Setting("DIP", 3000, table="501", run=1), {"psnr": 6.070183400575599}),
    Row(B3, Setting(steps=3000), note="control"), Row(A5, Setting("DIP"), note="control"),
    Row(FIRST, Setting("DIP", 3000, table="first 501"), note="control; equals A by construction"),
    Row("B with 3000 steps, batches of 4", Setting(steps=3000, batch=4), note="control"),
)
COLUMNS = (
    Column("psnr", "PSNR of one sample, dB", "as reported"),
    Column("samples", "PSNR of samples, dB", "sound"),
    Column("samples_sd", "its standard deviation from sample to sample", "sound"),
    Column("noised_start", "PSNR of samples that begin with the DIP's picture, noised, dB", "sound"),
    Column("black", "PSNR of a black picture, dB", "control"),
    Column("dip", "PSNR of the DIP's picture, dB", "control"),
    Column("signal", "weight of the picture where chains begin", "as reported", 3),
    Column("loss", "mean loss, last quarter of training", "as reported", 4),
    Column("loss_variation", "standard deviation of that loss over its mean", "as reported"),
)

OLD_KEYS = {"many": "samples", "many_sd": "samples_sd", "right": "noised_start", "right_sd": "noised_start_sd",
            "unrest": "loss_variation"}


def _beats_black(row: str, results: Results):
    return above("samples less a black picture", results.difference(row, row, "samples", "black"), 1.0, "dB")


def _in_front(results: Results) -> Finding:
    reported = np.mean(results.difference(A, B, "samples"))
    return Finding((above("A less B, both with 3000 steps", results.difference(A, B3, "samples"), 0.5, "dB"),),
                   f"with the report's unequal steps {reported:+.2f} dB")


def _alike(results: Results) -> Finding:
    losses = np.log(results.together((A, "loss"), (B3, "loss")))
    return Finding((alike("logarithm of A's loss over B's after 3000 steps", losses[:, 0] - losses[:, 1],
                          np.log(1.25)),))


def _unstable(results: Results) -> Finding:
    weights = results.mean(A, "signal"), results.mean(C, "signal"), results.mean(FIRST, "signal")
    return Finding(
        (above("A less C", results.difference(A, C, "samples"), 0.5, "dB"),
         above("standard deviation of the loss over its mean, C less A", results.difference(C, A, "loss_variation"),
               0.1)),
        f"the picture's weight where chains begin: {weights[0]:.3f} with 1000 entries, {weights[1]:.3f} with 501, "
        f"{weights[2]:.3f} with the first 501: it shrinks, and no factor 2^(t/2) exists")


CLAIMS = (
    Claim("A DIP in front gives a better picture with fewer steps (8.1 v 1.3 dB)", "samples from pure noise, equal "
          "steps: A's PSNR is above B's; margin 0.5 dB", _in_front,
          "a gain of 0.5 dB from training on the DIP's picture, at the full width"),
    Claim("With a DIP in front the outline of the digit is found (8.1 dB)", "samples of A have a higher PSNR than a "
          "black picture; margin 1 dB", lambda results: Finding((_beats_black(A, results),)),
          "samples from pure noise at time 501 that are 1 dB nearer to the digit than black is"),
    Claim("Both loss curves look alike", "A's loss is B's after 3000 steps, within a factor of 1.25", _alike,
          "losses that differ by a quarter"),
    Claim("PSNR is low only because digits are black and white", "the same networks and digits: beginning with the "
          "DIP's picture, noised as in training, changes the PSNR by less than 3 dB", lambda results: Finding((alike(
              "samples from the noised picture less samples from pure noise",
              results.difference(A, A, "noised_start", "samples"), 3.0, "dB"),)),
          "low PSNR also where chains begin with as much picture as in training"),
    Claim("A table of 501 entries makes training unstable, since the picture's weight grows by 2^(t/2)", "C's samples "
          "are worse than A's, margin 0.5 dB, and its loss varies more (standard deviation over mean), margin 0.1",
          _unstable, "worse samples with the table of 501; the stated cause is refuted by arithmetic"),
    Claim("A DDPM cannot remove the noise of one picture (all 1000 times): nothing better than black is drawn",
          "N1's samples do not have a higher PSNR than a black picture; margin 1 dB",
          lambda results: Finding((negated(_beats_black(N1, results)),)),
          "samples of N1 that stay at black's PSNR for most digits and weights", looks=(3, 6, 12)),
)


def _losses(results: Results):
    return ([100 * (i + 1) / BINS for i in range(BINS)],
            {name: results.curve(name, "loss") for name in (A, B3, C)})


QUICK = Size((16, 32, 32, 16), 128, 2, 8)
REPORT = Report(
    "000", "a DDPM of one picture, with a DIP in front",
    "The report trains a DDPM (a UNet with BatchNorm that knows the digit's class) on a single handwritten 7. It finds "
    "that the samples stay noisy, and changes two things: only the first 501 of 1000 times are trained, and the "
    "training picture is what a deep image prior made of the digit. Samples then begin at time 501 with pure noise. It "
    "compares one sample of each kind with the digit by PSNR. At time 501 the picture's weight is still 0.52, so pure "
    "noise is not what the network was trained on: we also begin with the DIP's picture, noised as in training. A "
    "network that knows one picture only should return it.",
    (Table("runs", "All runs of the report, and controls", "Seed 0 is a 7, the other seeds are other held-out digits. "
           "PSNR of pixels in [0, 1], clipped; the report does not say what range it took.", ROWS, COLUMNS,
           Together(measure, program), CLAIMS,
           (Plot("loss", "Loss while training, seed 0.", _losses, "% of the steps", "mean squared error", True),),
           old_keys=OLD_KEYS, looks=(3, 6, 12)),),
    {"smoke": Size((4, 4, 4, 4), 8, 100, 2), "quick": QUICK, "full": Size((64, 128, 128, 64), 1024, 1, 32)},
    {"smoke": "a tiny network and 40 steps.", "quick": f"a network of {QUICK.widths} channels instead of (64, 128, "
     f"128, 64), half of all steps, {QUICK.samples} samples a run.",
     "full": "all sizes as in the report, 32 samples a run."},
    {"smoke": 1, "quick": 3, "full": 3},
    "A diffusion model (DDPM) learns to turn noise into pictures step by step; a deep image prior (DIP) is a network "
    "fitted to a single picture. The report claims that a DDPM which is trained on what a DIP made of one handwritten "
    "digit draws that digit better, and with less training, than a DDPM trained on the digit itself. With small "
    "networks we find the two equally good, and both hardly better than a black picture. Sampling begins with pure "
    "noise at a time at which the network had always seen the picture through the noise, at half its contrast. Begun "
    "with the DIP's own picture under as much noise, the same networks come 7 dB nearer to the digit; how much of that "
    "the start itself brings was not measured.",
    ("runs", A),
    (("network", "channels 64, 128, 128, 64; time vector 1024", f"channels 16, 32, 32, 16; time vector "
      f"{QUICK.time_dim}"),
     ("steps of training", "3000 (A) and 5000 (B), DIP 2000", "half of each"),
     ("pictures", "one 7, one sample a setting", f"a digit a seed, {QUICK.samples} samples each")))
