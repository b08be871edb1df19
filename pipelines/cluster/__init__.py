"""The cluster file, and what pods of Kubeflow Pipelines, Argo and KubeRay have in common."""
