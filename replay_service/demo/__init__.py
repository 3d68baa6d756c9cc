"""The demonstration: a real model, real text, the whole path, in minutes on a laptop."""
