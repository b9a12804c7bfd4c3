"""Turns examples into adapters."""
