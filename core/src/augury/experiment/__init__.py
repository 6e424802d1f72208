"""Forwards to `augury_lab.experiment`."""
