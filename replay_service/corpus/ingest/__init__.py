"""The writing side: from shards to segments."""
