"""Measurements on models whose pretraining text is known: `python -m tests.evidence.world`, `... .coverage`."""
