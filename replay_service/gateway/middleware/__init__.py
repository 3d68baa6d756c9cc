"""Middlewares: a request passes them before its route, and an answer on its way out."""
