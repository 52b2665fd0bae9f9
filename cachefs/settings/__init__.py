"""Where the values of the configuration come from, and what is said when one of them is wrong."""
