"""What a large fit costs, from operation counts, and a check of the counts on this machine."""
