"""Objectives: advantages, the terms of a loss, and methods as sets of terms."""
