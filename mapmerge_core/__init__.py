"""Merge fine-tuned models with every trade-off in view."""

__version__ = "0.1.0"
