"""What a request passes before it comes to a route, and an answer on its way out."""
