"""Sampling responses: engines and the collector that keeps them busy."""
