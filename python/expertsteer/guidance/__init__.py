"""The expert reads along: what it knows of this input, carried into the target while it writes."""
