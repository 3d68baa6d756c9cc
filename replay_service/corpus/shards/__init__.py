"""What a corpus is made from: shards of documents, in files of many formats."""
