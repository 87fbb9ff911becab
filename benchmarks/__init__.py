"""What the figures of this project were measured with; every one checked before it is timed."""
