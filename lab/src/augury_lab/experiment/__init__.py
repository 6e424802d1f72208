"""Comparisons: compositions x seeds on the same splits and, for each seed, the same initial weights and draws."""
