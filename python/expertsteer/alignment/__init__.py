"""Step 1: the map between the states of two models."""
