"""The resize step as a RayJob: its manifest, the pod that waits for it, and its errors."""
