"""URIs, files of disk and S3, retries, errors with their exit codes: what everything above stands on."""
