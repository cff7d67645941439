"""Plain PyTorch versions of the five reference systems: the opponent in speed tables, checked against recordings."""
