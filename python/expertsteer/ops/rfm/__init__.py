"""The Recursive Feature Machine's passes. `expertsteer.ops` lists what is public of them."""
