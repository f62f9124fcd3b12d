"""Pareto Merging: one training run, a merged model for every preference (ICML 2025)."""
