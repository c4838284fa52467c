"""Policies at work: in real time, on robots, over the network."""
