"""Rules that a corpus to classify and a trainer share: the loss, its model, and its arithmetic."""
