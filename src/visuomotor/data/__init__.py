"""Demonstrations on disk -> batches in memory."""
