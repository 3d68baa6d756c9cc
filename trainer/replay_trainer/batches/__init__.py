"""Fine-tuning rows, and rehearsed rows among them."""
