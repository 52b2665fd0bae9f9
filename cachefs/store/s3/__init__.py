"""Objects in a bucket on any S3, through botocore. Imported only where a store is on S3."""
