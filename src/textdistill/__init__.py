"""textdistill."""
