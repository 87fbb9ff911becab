"""What people look at: tables, markdown, charts, heat maps, and the page of an evaluation."""

from .page import write_report

__all__ = ["write_report"]
