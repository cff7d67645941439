"""What was measured: operators, the noise of a measurement, and its level."""
