"""The tiers and how a chunk comes from one to the next."""
