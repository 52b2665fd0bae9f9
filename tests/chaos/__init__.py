"""A random schedule of faults at every tier, under a load that compares every byte."""
