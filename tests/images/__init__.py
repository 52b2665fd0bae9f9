"""Real disk images and memory snapshots, made quickly, alike each time, without loop devices.

The tests take them as fixtures (`tests.images.fixtures`); the demo and the benches call the same
plain functions.
"""
