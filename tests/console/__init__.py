"""The page at /console in a real browser."""
