"""What was measured: operators, the noise of a measurement and its level; and what can be had without a network."""
