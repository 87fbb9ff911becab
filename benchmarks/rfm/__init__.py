"""Fits of the Recursive Feature Machine and its kernels, beside their peers."""
