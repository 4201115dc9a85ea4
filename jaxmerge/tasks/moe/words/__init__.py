"""What a run about mixtures says of its results: in sentences that follow from the numbers."""
