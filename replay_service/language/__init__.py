"""What corpus and trainer must agree on: tokens, rows, and what a loss is. Both measure with this code."""
