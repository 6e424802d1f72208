"""The checks, one function each: it takes a bench, and raises `CheckFailed` or `NotApplicable`, or passes."""
