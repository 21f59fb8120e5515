"""Moments and running averages, and what can be done to them between batches."""
