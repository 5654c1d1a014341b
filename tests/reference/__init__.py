"""Slow, obvious twins of the arithmetic in float64, written from the formulas. No product code."""
