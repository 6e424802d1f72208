"""What an author of a method needs: the contract suite, a new package's files, the check of installed methods."""
