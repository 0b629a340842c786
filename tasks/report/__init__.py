"""The report of a run: one HTML page that needs nothing but itself."""

from tasks.report.render import render

__all__ = ["render"]
