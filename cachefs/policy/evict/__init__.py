"""Which slot to give up. All policies answer to the same seam."""
