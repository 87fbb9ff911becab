"""Mutual information of layers. `expertsteer.ops` lists what is public of it."""
