"""C programs that try the lane's parts without Python, and how they are built with sanitizers."""
