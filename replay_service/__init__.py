"""A data service for replay sampling: rehearse the right pretraining samples while fine-tuning."""

__version__ = "0.1.0"
