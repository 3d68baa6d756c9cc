"""The operators' page: what the JSON routes say, as HTML. Templates and files lie beside the modules."""
