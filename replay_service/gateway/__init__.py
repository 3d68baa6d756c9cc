"""The HTTP side: FastAPI, the Arrow wire, problems. It holds no state of its own."""
