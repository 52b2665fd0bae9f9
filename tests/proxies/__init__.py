"""Proxies on loopback that do what networks and servers do when they fail."""
