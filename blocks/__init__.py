"""The nouns a user configures: image APIs, job stores, the bucket."""
