"""S3 servers of our own on loopback, for tests and benches."""
