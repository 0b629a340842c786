"""`winnow serve`: Prefect's server, the deployments and their workers, on one machine."""
