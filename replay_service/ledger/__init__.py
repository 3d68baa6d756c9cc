"""Events made durable: the journal of every run, and the owner that alone writes it."""
