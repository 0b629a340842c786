"""What differs between two versions: parameters, recipes of stages, shards, accounts, and the rows of the corpus."""
