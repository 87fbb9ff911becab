"""Steering vectors, the calibration they carry, and their card."""

from .calibration import Calibration
from .vectors import SteeringVectors

__all__ = ["Calibration", "SteeringVectors"]
