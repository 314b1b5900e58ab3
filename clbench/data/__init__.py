"""Data sets of images on disk: what they are, how they are had, and their decoded pixels."""
