"""Whole processes under load, attack and comparison."""
