"""Pretraining shards in, a corpus ready for rehearsal out. Only `ingest` and what it runs needs Ray and torch."""
