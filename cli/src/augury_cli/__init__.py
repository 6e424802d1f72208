"""The `augury` command: Typer commands over augury's functions."""
