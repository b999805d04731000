"""Adaptors to frameworks: each file needs its framework, and nothing else here does."""
