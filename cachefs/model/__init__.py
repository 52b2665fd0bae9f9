"""The nouns of cachefs as values: chunks, manifests, images. No I/O, no clock, no concurrency."""
