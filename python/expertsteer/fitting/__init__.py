"""Step 3: steering vectors of paired layers, and the health check of a fit."""

from .checking import health
from .fitting import DIRECTIONS, fit_vectors
from .health_report import Health, HealthWarning

__all__ = ["DIRECTIONS", "Health", "HealthWarning", "fit_vectors", "health"]
