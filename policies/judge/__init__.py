"""Judging a world model: how close its pictures are, how well it ranks, and the report of both."""
