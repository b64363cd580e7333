"""What an author of plugins is given: a new package, checks, advice."""
