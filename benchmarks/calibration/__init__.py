"""What a strength at a budget costs to find, and a whole table of controls."""
