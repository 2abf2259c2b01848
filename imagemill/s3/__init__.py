"""S3 as all who reach it need it: addresses, and how a bucket is reached."""
