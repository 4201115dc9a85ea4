"""Public checkpoints become experts: foreign file formats and names, no mathematics."""
