"""Clean and resize as RayJobs: their manifest, the pod that waits for one, and its errors."""
