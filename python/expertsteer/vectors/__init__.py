"""Steering vectors, the calibration they carry, and their card."""
