"""Eviction that learns: sampled candidates, scored by a model of when each is wanted again."""
