"""Information of all layer pairs, beside the loops people write today."""
