"""Which alignment, pairing rule and vector method works: the cells of docs/study.md."""
