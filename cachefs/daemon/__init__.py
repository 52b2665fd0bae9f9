"""The daemon: puts the parts together and runs them. The only package that knows everything."""
