"""L2: frames by chunk id in a shared memory server, known to the fetchers only."""
