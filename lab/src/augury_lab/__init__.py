"""Compare compositions, look at trained networks more closely, and report what was found."""
