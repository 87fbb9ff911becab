"""Steering by a table of vectors. `expertsteer.ops` lists what is public of it."""
