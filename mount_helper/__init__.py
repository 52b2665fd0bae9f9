"""The process that owns /dev/fuse: the supervisor and the lane. Imports nothing of cachefs."""
