"""What a corpus to classify and a trainer must agree on: what a loss is, which model it is of, in which arithmetic."""
