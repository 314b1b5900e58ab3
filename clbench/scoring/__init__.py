"""Scores: how an answer is marked."""
