"""Decides whether a model may go out."""
