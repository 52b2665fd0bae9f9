"""What this host knows: the cache folder, residency, segments, local manifests, names."""
