"""Merge fine-tuned models with every trade-off in view."""
