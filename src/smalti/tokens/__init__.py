"""Token sets: folders of pictures and film as Parquet shards of ids, and back."""
