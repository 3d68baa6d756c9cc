"""Several gateways on one port, in front of one owner.

caller ── gateway ── batches: plans from the owner, rows from its own view of the corpora
                 └── all else: passed on to the owner ── the whole application
"""
