"""URIs, files on disk and S3, retries, and errors with their exit codes."""
