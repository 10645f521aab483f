"""Cutting a decoder in width: scores of neurons, heads and channels, what lies along each axis, the cut."""
