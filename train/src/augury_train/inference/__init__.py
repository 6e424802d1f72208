"""Trained networks in use: loaded without their data, asked, and taken away."""
